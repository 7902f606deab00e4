// A tensor of the emulated GPU and the CPU tensor over the same bytes.
#pragma once
#include <ATen/ATen.h>

#include "shared.h"

namespace emulated {

// EMULATED_GPU_SKIP_ABOVE: operators on tensors of more bytes are not computed, only their results allocated. Numbers
// mean nothing then, but memory does: a network of any size runs in seconds and touches none of the memory it takes.
inline size_t skip_above() {
  static const size_t bytes =
      getenv("EMULATED_GPU_SKIP_ABOVE") ? emulated::bytes_of("EMULATED_GPU_SKIP_ABOVE", "0") : SIZE_MAX;
  return bytes;
}

// A CPU tensor over the bytes of a CUDA tensor.
inline at::Tensor over(const at::Tensor& tensor) {
  auto options = tensor.options().device(at::kCPU).pinned_memory(false);
  at::Tensor host = at::for_blob(tensor.data_ptr(), tensor.sizes()).strides(tensor.strides()).options(options)
                        .target_device(at::kCPU).make_tensor();
  if (tensor.unsafeGetTensorImpl()->is_wrapped_number()) host.unsafeGetTensorImpl()->set_wrapped_number(true);
  if (tensor.is_neg()) host._set_neg(true);
  if (tensor.is_conj()) host._set_conj(true);
  return host;
}

// Whether results are left where they were computed: see `Launching` in operators.cpp.
inline bool& stay_on_host() {
  thread_local bool stay = false;
  return stay;
}

// A CUDA tensor with what a CPU tensor holds, strides included.
inline at::Tensor onto(const at::Tensor& host, at::Device device) {
  if (!host.defined() || host.is_cuda() || stay_on_host()) return host;
  at::Tensor tensor = at::empty_strided(host.sizes(), host.strides(), host.options().device(device));
  if (host.numel() == 0 || host.is_meta()) return tensor;
  if (host.is_non_overlapping_and_dense()) memcpy(tensor.data_ptr(), host.data_ptr(), host.nbytes());
  else over(tensor).copy_(host);
  return tensor;
}

inline std::optional<at::Tensor> over(const std::optional<at::Tensor>& tensor) {
  return tensor && tensor->defined() ? std::optional(over(*tensor)) : std::nullopt;
}

}  // namespace emulated
