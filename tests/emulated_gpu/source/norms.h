// Batch norm as only a GPU has it: cuDNN's, and the pieces of SyncBatchNorm.
#pragma once
#include "tensors.h"

namespace emulated::norms {

// What the CUDA kernel of native_batch_norm_backward refuses and the CPU's does not: channels-last images, or anything
// for which it does not need the sums, without the statistics of the forward pass (Normalization.cu of PyTorch).
inline void refuse_missing_statistics(const at::Tensor& x, bool saved_mean, bool saved_scale, bool sums, bool input) {
  const bool channels_last = x.is_contiguous(at::MemoryFormat::ChannelsLast) ||
                             x.is_contiguous(at::MemoryFormat::ChannelsLast3d) ||
                             (x.is_contiguous() && x.dim() > 1 && x.stride(1) == 1);
  if (sums && input && !channels_last) return;
  TORCH_INTERNAL_ASSERT(saved_mean, "save_mean should always be defined\n");
  TORCH_INTERNAL_ASSERT(saved_scale, "save_invstd should always be defined\n");
}

// cuDNN's batch norm, which PyTorch prefers on a GPU, and its backward.
inline std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> batch_norm(
    const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
    const std::optional<at::Tensor>& mean, const std::optional<at::Tensor>& variance, bool training, double momentum,
    double epsilon) {
  at::AutoDispatchBelowADInplaceOrView below;
  if (x.nbytes() > skip_above()) {
    auto none = at::empty({0}, x.options().dtype(at::kByte));
    auto channels = training ? at::empty({x.size(1)}, weight.options()) : at::empty({0}, weight.options());
    return {at::empty_like(x), channels, at::empty_like(channels), none};
  }
  auto [out, saved_mean, saved_scale] = at::native_batch_norm(
      over(x), over(weight), over(bias), over(mean), over(variance), training, momentum, epsilon);
  const auto device = x.device();
  return {onto(out, device), onto(saved_mean, device), onto(saved_scale, device),
          at::empty({0}, x.options().dtype(at::kByte))};
}
inline std::tuple<at::Tensor, at::Tensor, at::Tensor> batch_norm_backward(
    const at::Tensor& x, const at::Tensor& gradient, const at::Tensor& weight, const std::optional<at::Tensor>& mean,
    const std::optional<at::Tensor>& variance, const std::optional<at::Tensor>& saved_mean,
    const std::optional<at::Tensor>& saved_scale, double epsilon, const at::Tensor&) {
  at::AutoDispatchBelowADInplaceOrView below;
  if (x.nbytes() > skip_above()) return {at::empty_like(x), at::empty_like(weight), at::empty_like(weight)};
  auto [a, b, c] = at::native_batch_norm_backward(over(gradient), over(x), over(weight), over(mean), over(variance),
                                                  over(saved_mean), over(saved_scale), true, epsilon,
                                                  {true, true, true});
  return {onto(a, x.device()), onto(b, x.device()), onto(c, x.device())};
}

// SyncBatchNorm's pieces, which only CUDA has.
inline at::Tensor wide(const at::Tensor& tensor) { return over(tensor).to(at::kFloat); }
inline at::Tensor per_channel(const at::Tensor& values, const at::Tensor& like) {
  std::vector<int64_t> shape(like.dim(), 1);
  shape[1] = like.size(1);
  return values.reshape(shape);
}
inline std::vector<int64_t> all_but_channels(const at::Tensor& tensor) {
  std::vector<int64_t> dims;
  for (int64_t i = 0; i < tensor.dim(); i++) if (i != 1) dims.push_back(i);
  return dims;
}
inline at::Tensor onto_as(const at::Tensor& host, const at::Tensor& like) {
  return onto(host.to(like.scalar_type()).contiguous(like.suggest_memory_format()), like.device());
}
inline std::tuple<at::Tensor, at::Tensor> stats(const at::Tensor& x, double epsilon) {
  at::AutoDispatchBelowADInplaceOrView below;
  auto [variance, mean] = at::var_mean(wide(x), all_but_channels(x), 0, false);
  return {onto(mean, x.device()), onto((variance + epsilon).rsqrt(), x.device())};
}
inline std::tuple<at::Tensor, at::Tensor> gather_stats(
    const at::Tensor& x, const at::Tensor& means, const at::Tensor& scales, const std::optional<at::Tensor>& mean,
    const std::optional<at::Tensor>& variance, double momentum, double epsilon, const at::Tensor& counts) {
  at::AutoDispatchBelowADInplaceOrView below;
  const at::Tensor n = wide(counts).reshape({-1, 1}), m = wide(means), s = wide(scales);
  const at::Tensor all = n.sum(), centre = (m * n).sum(0) / all;
  const at::Tensor square = ((s.pow(-2) - epsilon + (m - centre).pow(2)) * n).sum(0);
  if (mean && mean->defined()) over(*mean).mul_(1 - momentum).add_(centre * momentum);
  if (variance && variance->defined()) over(*variance).mul_(1 - momentum).add_(square / (all - 1) * momentum);
  return {onto(centre, x.device()), onto((square / all + epsilon).rsqrt(), x.device())};
}
inline at::Tensor elements(const at::Tensor& x, const std::optional<at::Tensor>& weight,
                           const std::optional<at::Tensor>& bias, const at::Tensor& mean, const at::Tensor& scale,
                           double) {
  at::AutoDispatchBelowADInplaceOrView below;
  at::Tensor y = (wide(x) - per_channel(wide(mean), x)) * per_channel(wide(scale), x);
  if (weight && weight->defined()) y = y * per_channel(wide(*weight), x);
  if (bias && bias->defined()) y = y + per_channel(wide(*bias), x);
  return onto_as(y, x);
}
inline std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> backward_sums(
    const at::Tensor& gradient, const at::Tensor& x, const at::Tensor& mean, const at::Tensor& scale,
    const std::optional<at::Tensor>&, bool, bool, bool) {
  at::AutoDispatchBelowADInplaceOrView below;
  const at::Tensor g = wide(gradient), centred = wide(x) - per_channel(wide(mean), x);
  const at::Tensor sum = g.sum(all_but_channels(x)), product = (g * centred).sum(all_but_channels(x));
  const auto device = x.device();
  return {onto(sum, device), onto(product, device), onto(product * wide(scale), device), onto(sum.clone(), device)};
}
inline at::Tensor backward_elements(const at::Tensor& gradient, const at::Tensor& x, const at::Tensor& mean,
                                    const at::Tensor& scale, const std::optional<at::Tensor>& weight,
                                    const at::Tensor& sum, const at::Tensor& product, const at::Tensor& counts) {
  at::AutoDispatchBelowADInplaceOrView below;
  const at::Tensor n = wide(counts).sum(), s = wide(scale);
  at::Tensor factor = weight && weight->defined() ? s * wide(*weight) : s;
  const at::Tensor centred = wide(x) - per_channel(wide(mean), x);
  const at::Tensor dx = wide(gradient) - per_channel(wide(sum) / n, x) -
                        centred * per_channel(s * s * wide(product) / n, x);
  return onto_as(dx * per_channel(factor, x), x);
}

}  // namespace emulated::norms
