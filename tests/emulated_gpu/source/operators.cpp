// Runs every operator of an (emulated) CUDA tensor on the CPU, in place: device memory is host memory, so a CPU tensor
// over the same bytes is enough. Results go into blocks of PyTorch's own CUDA caching allocator.
//
// What only looks at sizes and strides (views), what only allocates (empty) and what copies between host and device
// stays PyTorch's own code. Registered for the CUDA key, below autograd, autocast and the dispatch modes.
#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/copy_native.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAGraphsC10Utils.h>
#include <torch/library.h>

#include "norms.h"
#include "recording.h"
#include "tensors.h"

#include <map>
#include <mutex>
#include <set>
#include <string>

namespace {

using namespace emulated;
using torch::jit::Stack;

// Operators that stay as they are on CUDA: none of them launches a kernel.
const std::set<std::string> kReal = {
    "empty", "empty_strided", "resize_", "set_", "view", "as_strided", "_reshape_alias", "unfold", "record_stream",
    "_local_scalar_dense", "is_set_to", "_has_same_storage_numel", "_efficientzerotensor", "is_pinned", "_pin_memory",
    "view_as_real", "view_as_complex", "copy_", "_fused_sdp_choice", "cudnn_batch_norm", "cudnn_batch_norm_backward",
    "batch_norm_stats", "batch_norm_gather_stats_with_counts", "batch_norm_elemt", "batch_norm_backward_reduce",
    "batch_norm_backward_elemt"};
// Operators without a CUDA kernel of their own whose code looks at the device and calls cuDNN.
const std::set<std::string> kComposite = {"convolution", "convolution_backward", "_convolution"};
// On CUDA these wait for the device, for the size of their result or for a value.
const std::set<std::string> kWaits = {"nonzero", "masked_select", "_unique", "_unique2", "unique_dim", "equal",
                                      "unique_consecutive", "unique_dim_consecutive", "bincount", "is_nonzero"};
// Sums of products in half precision: the CPU's fp16 kernels are a hundred times slower than its fp32 ones, and a GPU
// sums in fp32 too.
const std::set<std::string> kProducts = {"convolution", "convolution_backward", "_convolution", "mm", "bmm", "addmm",
                                         "baddbmm", "addmv", "mv", "dot"};
// Arguments that may lie on the CPU while the others are on the GPU.
const std::set<std::string> kMayIndex = {"index", "index_put_", "_index_put_impl_", "_unsafe_index", "index_put"};

std::mutex random_lock;

bool is_half(const at::Tensor& tensor) {
  return tensor.scalar_type() == at::kHalf || tensor.scalar_type() == at::kBFloat16;
}

// One call: the CUDA tensors among its arguments and the CPU tensors that stand for them.
struct Call {
  const c10::FunctionSchema& schema;
  std::optional<at::Device> device;
  std::vector<std::pair<at::Tensor, at::Tensor>> pairs;  // (CUDA, CPU over it)
  std::vector<std::pair<at::Tensor, at::Tensor>> grown;  // out= arguments that were empty: (CUDA, new CPU tensor)
  bool widened = false;
  bool skipped = false;  // sizes and strides only, by the operator's kernel for the meta device

  void expect(const at::Tensor& tensor, const std::string& argument) {
    if (!tensor.defined()) return;
    if (tensor.is_cuda()) {
      if (!device) device = tensor.device();
      TORCH_CHECK(tensor.device() == *device, "Expected all tensors to be on the same device, but found at least two "
                  "devices, ", *device, " and ", tensor.device(), "! (when checking argument for argument ", argument,
                  " in method ", schema.name(), ")");
    }
  }
  // After `expect` has seen all of them.
  void refuse_host(const at::Tensor& tensor, const std::string& argument) {
    if (!device || !tensor.defined() || tensor.is_cuda() || tensor.dim() == 0) return;
    const std::string name = schema.name().substr(6);
    if (kMayIndex.count(name) && argument == "indices") return;
    if (name.rfind("_foreach", 0) == 0 || (name.rfind("_fused", 0) == 0 && argument == "lr")) return;
    TORCH_CHECK(false, "Expected all tensors to be on the same device, but found at least two devices, ", *device,
                " and ", tensor.device(), "! (when checking argument for argument ", argument, " in method ",
                schema.name(), ")");
  }
  at::Tensor host(const at::Tensor& tensor, bool fresh) {
    if (skipped && tensor.defined() && tensor.is_cpu() && tensor.dim() > 0) return tensor.to(at::kMeta);
    if (!tensor.defined() || !tensor.is_cuda()) return tensor;
    for (auto& pair : pairs)
      if (pair.first.is_same(tensor)) return pair.second;
    at::Tensor made;
    if (skipped) {
      made = at::empty_strided(tensor.sizes(), tensor.strides(), tensor.options().device(at::kMeta));
    } else if (fresh && tensor.numel() == 0) {
      made = at::empty({0}, tensor.options().device(at::kCPU));
      grown.emplace_back(tensor, made);
    } else {
      made = over(tensor);
      if (widened && is_half(made)) made = made.to(at::kFloat);
    }
    pairs.emplace_back(tensor, made);
    return made;
  }
  c10::IValue host(const c10::IValue& value, const c10::Argument& argument) {
    const bool fresh = argument.is_out();
    if (value.isTensor()) return host(value.toTensor(), fresh);
    if (value.isTensorList()) {
      c10::List<at::Tensor> list;
      for (const at::Tensor& tensor : value.toTensorVector()) list.push_back(host(tensor, fresh));
      return list;
    }
    if (value.isOptionalTensorList()) {
      c10::List<std::optional<at::Tensor>> list;
      for (const std::optional<at::Tensor>& tensor : value.toOptionalTensorList())
        list.push_back(tensor ? std::optional(host(*tensor, fresh)) : std::nullopt);
      return list;
    }
    if (value.isDevice()) return c10::IValue(at::Device(skipped ? at::kMeta : at::kCPU));
    return value;
  }
  // The CUDA tensor of a result: an argument that was written to, or a new one.
  at::Tensor result(const at::Tensor& tensor) {
    if (!tensor.defined()) return tensor;
    for (auto& pair : pairs)
      if (pair.second.is_same(tensor)) return pair.first;
    for (auto& pair : pairs)  // it returned its argument under another name
      if (!widened && pair.second.numel() && tensor.has_storage() && tensor.numel() &&
          (skipped ? pair.second.storage().is_alias_of(tensor.storage())
                   : pair.second.storage().data() == tensor.storage().data()))
        return pair.first.as_strided(tensor.sizes(), tensor.strides(),
                                     pair.first.storage_offset() + tensor.storage_offset());
    return onto(tensor, *device);
  }
};

// Where the work of the current stream is noted; null where it is simply done.
Recording* recording_here() {
  Recording* recording = emulated_recording();
  const bool captures = recording && c10::cuda::currentStreamCaptureStatusMayInitCtx() != c10::cuda::CaptureStatus::None;
  return captures ? recording : nullptr;
}

void each_tensor(const c10::IValue& value, const std::function<void(const at::Tensor&)>& visit) {
  if (value.isTensor()) visit(value.toTensor());
  else if (value.isTensorList()) for (const at::Tensor& tensor : value.toTensorVector()) visit(tensor);
  else if (value.isOptionalTensorList())
    for (const std::optional<at::Tensor>& tensor : value.toOptionalTensorList()) if (tensor) visit(*tensor);
}

// Random numbers come from PyTorch's CUDA generator (its seed and offset), so its state is saved and restored as ever;
// the CPU's own generator is left as it was.
struct Randomness {
  at::Generator host = at::detail::getDefaultCPUGenerator();
  at::Tensor before;
  std::unique_lock<std::mutex> hold{random_lock};

  Randomness(const std::vector<c10::IValue>& arguments, at::Device device) {
    at::Generator generator = at::globalContext().defaultGenerator(device);
    for (const c10::IValue& value : arguments)
      if (value.isGenerator() && value.toGenerator().defined()) generator = value.toGenerator();
    TORCH_CHECK(generator.device().type() == at::kCUDA, "Expected a 'cuda' device type for generator but found '",
                generator.device().type(), "'");
    uint64_t seed = 0, offset = 0;
    if (!recording_here()) {  // the launches draw, as they would on a card
      std::lock_guard<std::mutex> guard(generator.mutex());
      seed = generator.current_seed(), offset = generator.get_offset();
      generator.set_offset(offset + 4);
    }
    before = host.get_state();
    host.set_current_seed(seed * 0x9E3779B97F4A7C15ull + offset);
  }
  ~Randomness() { host.set_state(before); }
};

// Runs `op` with `given` on the CPU; `widened`: half-precision tensors as float32, for what the CPU has no kernel for.
void run(const c10::OperatorHandle& op, const std::vector<c10::IValue>& given, Stack* stack, bool widened,
         bool skipped = false) {
  const c10::FunctionSchema& schema = op.schema();
  Call call{schema};
  call.widened = widened, call.skipped = skipped;
  const auto& arguments = schema.arguments();
  for (size_t i = 0; i < given.size(); i++)
    each_tensor(given[i], [&](const at::Tensor& tensor) { call.expect(tensor, arguments[i].name()); });
  for (size_t i = 0; i < given.size(); i++) {
    each_tensor(given[i], [&](const at::Tensor& tensor) { call.refuse_host(tensor, arguments[i].name()); });
    if (!call.device && given[i].isDevice()) call.device = given[i].toDevice();
  }
  if (!call.device || call.device->index() < 0) call.device = at::Device(at::kCUDA, c10::cuda::current_device());

  at::AutoDispatchBelowADInplaceOrView below;
  std::optional<Randomness> randomness;
  if (!skipped && op.hasTag(at::Tag::nondeterministic_seeded)) randomness.emplace(given, *call.device);
  at::ScalarType narrow = at::kFloat;
  Stack host;
  for (size_t i = 0; i < given.size(); i++) {
    each_tensor(given[i], [&](const at::Tensor& tensor) {
      if (is_half(tensor) && narrow == at::kFloat) narrow = tensor.scalar_type();
    });
    if (given[i].isGenerator() || (randomness && given[i].isNone() && arguments[i].name() == "generator"))
      host.emplace_back(randomness ? c10::IValue(randomness->host) : c10::IValue());
    else host.push_back(call.host(given[i], arguments[i]));
  }
  op.redispatchBoxed(c10::DispatchKeySet(skipped ? c10::DispatchKey::Meta : c10::DispatchKey::CPU), &host);

  for (auto& pair : call.grown) {
    pair.first.resize_(pair.second.sizes());
    if (pair.first.numel()) over(pair.first).copy_(pair.second);
  }
  if (widened)  // what was written to a widened copy goes back
    for (size_t i = 0; i < given.size(); i++)
      if (arguments[i].alias_info() && arguments[i].alias_info()->isWrite())
        each_tensor(given[i], [&](const at::Tensor& tensor) {
          if (tensor.defined() && tensor.is_cuda()) over(tensor).copy_(call.host(tensor, false));
        });
  auto narrowed = [&](const at::Tensor& tensor) {
    at::Tensor back = call.result(tensor);
    const bool fresh = back.defined() && widened && back.scalar_type() == at::kFloat && narrow != at::kFloat;
    for (auto& pair : call.pairs) if (pair.first.is_same(back)) return back;
    return fresh ? onto(tensor.to(narrow), *call.device) : back;
  };
  for (c10::IValue& value : host) {
    if (value.isTensor()) stack->emplace_back(narrowed(value.toTensor()));
    else if (value.isTensorList()) {
      c10::List<at::Tensor> list;
      for (const at::Tensor& tensor : value.toTensorVector()) list.push_back(narrowed(tensor));
      stack->emplace_back(list);
    } else stack->push_back(value);
  }
}

bool is_large(const std::vector<c10::IValue>& given) {
  bool large = false;
  if (skip_above() != SIZE_MAX)
    for (const c10::IValue& value : given)
      each_tensor(value,
                  [&](const at::Tensor& tensor) { large |= tensor.defined() && tensor.nbytes() > skip_above(); });
  return large;
}

void perform(const c10::OperatorHandle& op, const std::vector<c10::IValue>& given, Stack* stack) {
  const std::string name = op.schema().name().substr(6);  // without "aten::"
  if (name == "native_batch_norm_backward") {
    const auto mask = given[9].toBoolList();
    norms::refuse_missing_statistics(given[1].toTensor(), !given[5].isNone(), !given[6].isNone(),
                                     given[7].toBool() || mask[1] || mask[2], mask[0]);
  }
  bool waits = kWaits.count(name);
  if (name == "index" || name == "_index_put_impl_" || name == "index_put_")
    each_tensor(given[1], [&](const at::Tensor& index) {
      waits |= index.defined() && (index.scalar_type() == at::kBool || index.scalar_type() == at::kByte);
    });
  if (waits) {
    if (Recording* recording = recording_here()) {
      recording->broken = true;
      TORCH_CHECK(false, "CUDA error: operation not permitted when stream is capturing (", name, ")");
    }
    c10::cuda::warn_or_error_on_sync();
  }
  if (!waits && name != "_amp_foreach_non_finite_check_and_unscale_" && is_large(given)) {
    try {
      return run(op, given, stack, false, true);
    } catch (const c10::NotImplementedError&) {  // without a kernel for the meta device: computed
    }
  }
  if (kProducts.count(name) && op.schema().overload_name() != "dtype" && given[0].isTensor() && given[0].toTensor().scalar_type() == at::kHalf)
    return run(op, given, stack, true);
  try {
    run(op, given, stack, false);
  } catch (const c10::OutOfMemoryError&) {
    throw;
  } catch (const c10::Error& error) {
    const std::string text = error.what();
    const bool unsupported = text.find("not implemented for 'Half'") != std::string::npos ||
                             text.find("not implemented for 'BFloat16'") != std::string::npos ||
                             text.find("mkldnn") != std::string::npos;
    if (!unsupported) throw;
    run(op, given, stack, true);
  }
}

// The same argument as it is noted: over the same bytes, and holding nothing.
at::Tensor bare(const at::Tensor& tensor) {
  if (!tensor.defined() || !tensor.is_cuda()) return tensor;
  at::Tensor made = at::for_blob(tensor.data_ptr(), tensor.sizes()).strides(tensor.strides())
                        .options(tensor.options()).target_device(tensor.device()).make_tensor();
  if (tensor.unsafeGetTensorImpl()->is_wrapped_number()) made.unsafeGetTensorImpl()->set_wrapped_number(true);
  return made;
}
std::optional<at::Tensor> bare(const std::optional<at::Tensor>& tensor) {
  return tensor ? std::optional(bare(*tensor)) : std::nullopt;
}
c10::IValue bare(const c10::IValue& value) {
  if (value.isTensor()) return bare(value.toTensor());
  if (value.isTensorList()) {
    c10::List<at::Tensor> list;
    for (const at::Tensor& tensor : value.toTensorVector()) list.push_back(bare(tensor));
    return list;
  }
  if (value.isOptionalTensorList()) {
    c10::List<std::optional<at::Tensor>> list;
    for (const std::optional<at::Tensor>& tensor : value.toOptionalTensorList()) list.push_back(bare(tensor));
    return list;
  }
  return value;
}
template <class Value> Value bare(const Value& value) { return value; }

// Put back, when the capture ends, what is written to the tensor until then.
void keep(Recording* recording, const at::Tensor& tensor) {
  if (!tensor.defined() || !tensor.is_cuda() || !tensor.numel() || tensor.nbytes() > skip_above()) return;
  const at::Tensor target = over(tensor), before = target.clone();
  recording->undo.push_back([target, before] { target.copy_(before); });
}
void keep(Recording* recording, const std::optional<at::Tensor>& tensor) { if (tensor) keep(recording, *tensor); }
template <class Value> void keep(Recording*, const Value&) {}

// A launch's result into the place that the recorded one had; results that are arguments are there already.
void into_place(const at::Tensor& result, const at::Tensor& place) {
  if (result.defined() && result.is_cpu() && place.defined() && place.is_cuda() && place.numel())
    over(place).copy_(result);
}
void into_place(const c10::IValue& result, const c10::IValue& place) {
  if (result.isTensor() && place.isTensor()) return into_place(result.toTensor(), place.toTensor());
  if (!result.isTensorList() || !place.isTensorList()) return;
  const auto results = result.toTensorVector(), places = place.toTensorVector();
  for (size_t i = 0; i < results.size(); i++) into_place(results[i], places[i]);
}

// While a graph is launched results stay on the host until they are in their places: nothing is allocated.
struct Launching {
  Launching() { stay_on_host() = true; }
  ~Launching() { stay_on_host() = false; }
};

void on_cpu(const c10::OperatorHandle& op, Stack* stack) {
  const auto& arguments = op.schema().arguments();
  const std::vector<c10::IValue> given(stack->end() - arguments.size(), stack->end());
  torch::jit::drop(*stack, arguments.size());
  Recording* recording = recording_here();
  if (!recording) return perform(op, given, stack);
  // Batch norms write their running statistics, which their schemas do not say.
  const bool norm = op.schema().name().find("batch_norm") != std::string::npos;
  for (size_t i = 0; i < given.size(); i++)
    if (norm || (arguments[i].alias_info() && arguments[i].alias_info()->isWrite()))
      each_tensor(given[i], [&](const at::Tensor& tensor) { keep(recording, tensor); });
  const size_t before = stack->size();
  perform(op, given, stack);
  std::vector<c10::IValue> inputs, places;
  for (const c10::IValue& value : given) inputs.push_back(bare(value));
  for (size_t i = before; i < stack->size(); i++) places.push_back(bare((*stack)[i]));
  recording->work.push_back([op, inputs, places] {
    Launching launching;
    Stack results;
    perform(op, inputs, &results);
    for (size_t i = 0; i < places.size(); i++) into_place(results[i], places[i]);
  });
}

// The same for a function of the norms.
template <auto Function> struct Recorded;
template <class Result, class... Arguments, Result (*Function)(Arguments...)> struct Recorded<Function> {
  static Result call(Arguments... arguments) {
    Recording* recording = recording_here();
    if (!recording) return Function(arguments...);
    (keep(recording, arguments), ...);
    Result results = Function(arguments...);
    auto inputs = std::make_tuple(bare(std::decay_t<Arguments>(arguments))...);
    auto places = bare_results(results);
    recording->work.push_back([inputs, places] {
      Launching launching;
      c10::InferenceMode quiet(false);
      each_into_place(std::apply([](const auto&... given) { return Function(given...); }, inputs), places);
    });
    return results;
  }
  static at::Tensor bare_results(const at::Tensor& result) { return bare(result); }
  template <class... Each> static std::tuple<Each...> bare_results(const std::tuple<Each...>& results) {
    return std::apply([](const auto&... each) { return std::make_tuple(bare(each)...); }, results);
  }
  static void each_into_place(const at::Tensor& result, const at::Tensor& place) { into_place(result, place); }
  template <class... Each>
  static void each_into_place(const std::tuple<Each...>& results, const std::tuple<Each...>& places) {
    [&]<size_t... I>(std::index_sequence<I...>) {
      (into_place(std::get<I>(results), std::get<I>(places)), ...);
    }(std::index_sequence_for<Each...>{});
  }
};

// Within one GPU on the CPU; between host and GPU PyTorch's own code, which waits or not as it really does.
at::Tensor& copy_(at::Tensor& self, const at::Tensor& from, bool non_blocking) {
  if (self.is_cuda() && from.is_cuda()) {
    if (self.is_same(from)) return self;
    at::AutoDispatchBelowADInplaceOrView below;
    if (!self.numel() || self.nbytes() > skip_above()) return self;
    const at::Tensor target = over(self), source = over(from);
    if (Recording* recording = recording_here()) {
      keep(recording, self);
      recording->work.push_back([target, source] { target.copy_(source.expand_as(target)); });
    }
    target.copy_(source.expand_as(target));
    return self;
  }
  return at::native::copy_(self, from, non_blocking);
}

// Attention is taken apart into its matrix products.
int64_t sdp_choice(const at::Tensor&, const at::Tensor&, const at::Tensor&, const std::optional<at::Tensor>&, double,
                   bool, std::optional<double>, bool) { return 0; }

bool is_replaced(const c10::OperatorHandle& op) {
  const c10::FunctionSchema& schema = op.schema();
  const std::string name = schema.name().substr(6);
  if (kReal.count(name)) return false;
  if (kComposite.count(name)) return true;
  if (!op.hasKernelForDispatchKey(c10::DispatchKey::CUDA)) return false;
  for (const auto& result : schema.returns())  // a view of its argument
    if (result.alias_info() && !result.alias_info()->isWrite()) return false;
  return true;
}

// A product of halves that is left in float32, which the CPU lacks.
at::Tensor mm_dtype(const at::Tensor& a, const at::Tensor& b, at::ScalarType dtype) {
  return at::mm(a.to(dtype), b.to(dtype));
}
struct Quiet : c10::WarningHandler { void process(const c10::Warning&) override {} };

}  // namespace

TORCH_LIBRARY_IMPL(aten, CPU, library) { library.impl("mm.dtype", mm_dtype); }

TORCH_LIBRARY_IMPL(aten, CUDA, library) {
  Quiet quiet;  // "Overriding a previously registered kernel": yes
  c10::WarningUtils::WarningHandlerGuard guard(&quiet);
  for (const c10::OperatorName& name : c10::Dispatcher::singleton().getAllOpNames()) {
    if (name.name.rfind("aten::", 0) != 0) continue;
    auto op = c10::Dispatcher::singleton().findSchema(name);
    if (!op || !is_replaced(*op)) continue;
    const std::string full = name.name.substr(6) + (name.overload_name.empty() ? "" : "." + name.overload_name);
    library.impl(full.c_str(), torch::CppFunction::makeFromBoxedFunction<&on_cpu>());
  }
  library.impl("copy_", copy_);
  library.impl("_fused_sdp_choice", sdp_choice);
  library.impl("batch_norm_stats", TORCH_FN(Recorded<&norms::stats>::call));
  library.impl("batch_norm_gather_stats_with_counts", TORCH_FN(Recorded<&norms::gather_stats>::call));
  library.impl("batch_norm_elemt", TORCH_FN(Recorded<&norms::elements>::call));
  library.impl("batch_norm_backward_reduce", TORCH_FN(Recorded<&norms::backward_sums>::call));
  library.impl("batch_norm_backward_elemt", TORCH_FN(Recorded<&norms::backward_elements>::call));
  library.impl("cudnn_batch_norm", TORCH_FN(Recorded<&norms::batch_norm>::call));
  library.impl("cudnn_batch_norm_backward", TORCH_FN(Recorded<&norms::batch_norm_backward>::call));
}
