// A tensor of the emulated GPU and the CPU tensor over the same bytes.
#pragma once
#include <ATen/ATen.h>

#include "shared.h"

namespace emulated {

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
