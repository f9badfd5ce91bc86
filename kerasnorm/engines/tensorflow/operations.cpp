// The functions of fused.cpp as operations of TensorFlow, registered through its C interface.

#include <algorithm>
#include <cstdint>
#include <utility>

#include "tensorflow/c/kernels.h"
#include "tensorflow/c/ops.h"
#include "tensorflow/c/tf_status.h"
#include "tensorflow/c/tf_tensor.h"

#include "fused.cpp"

namespace {

// TensorFlow runs operations on many threads, and each keeps OpenMP threads of its own.
constexpr std::int64_t MOST_THREADS = 16;

struct Attributes {
  std::int64_t groups, before, after, threads;
  float epsilon, scale;
};

struct Status {
  TF_Status* status = TF_NewStatus();
  ~Status() { TF_DeleteStatus(status); }
  operator TF_Status*() const { return status; }
  bool failed() const { return TF_GetCode(status) != TF_OK; }
};

struct Tensor {
  TF_Tensor* tensor = nullptr;
  Tensor() = default;
  Tensor(const Tensor&) = delete;
  ~Tensor() {
    if (tensor) TF_DeleteTensor(tensor);
  }
  void* data() const { return TF_TensorData(tensor); }
  float* floats() const { return static_cast<float*>(data()); }
};

void* create(TF_OpKernelConstruction* construction) {
  Status status;
  auto* a = new Attributes{};
  const std::pair<const char*, std::int64_t*> integers[] = {
      {"groups", &a->groups}, {"before", &a->before}, {"after", &a->after},
      {"threads", &a->threads}};
  const std::pair<const char*, float*> floats[] = {{"epsilon", &a->epsilon}, {"scale", &a->scale}};
  for (const auto& [name, value] : integers)
    if (!status.failed())
      TF_OpKernelConstruction_GetAttrInt64(construction, name, value, status);
  for (const auto& [name, value] : floats)
    if (!status.failed())
      TF_OpKernelConstruction_GetAttrFloat(construction, name, value, status);
  if (status.failed()) TF_OpKernelConstruction_Failure(construction, status);
  return a;
}

void destroy(void* kernel) { delete static_cast<Attributes*>(kernel); }

// Of a running operation: its inputs and outputs in their order. What fails is reported to
// TensorFlow, and all that follows fails.
struct Context {
  TF_OpKernelContext* context;
  Status status;
  int inputs = 0, outputs = 0;

  bool get(Tensor& tensor) {
    if (!status.failed()) TF_GetInput(context, inputs++, &tensor.tensor, status);
    return report();
  }
  template <class... Tensors> bool get(Tensor& first, Tensors&... others) {
    return get(first) && get(others...);
  }
  bool give(Tensor& tensor, TF_DataType type, const std::int64_t* sizes, int rank) {
    std::size_t bytes = TF_DataTypeSize(type);
    for (int at = 0; at < rank; ++at) bytes *= static_cast<std::size_t>(sizes[at]);
    if (!status.failed())
      tensor.tensor = TF_AllocateOutput(context, outputs++, type, sizes, rank, bytes, status);
    return report();
  }
  bool report() {
    if (status.failed()) TF_OpKernelContext_Failure(context, status);
    return !status.failed();
  }
};

struct Sizes {  // of images (N, H, W, C)
  std::int64_t all[4], pixels;
  explicit Sizes(const Tensor& x) {
    for (int at = 0; at < 4; ++at) all[at] = TF_Dim(x.tensor, at);
    pixels = all[1] * all[2];
  }
};

Call call_of(const Attributes& a, const Sizes& s, const Tensor& x, const Tensor& gamma,
             const Tensor& beta, const Tensor& dropped) {
  Call call{};
  call.images = s.all[0];
  call.pixels = s.pixels;
  call.channels = s.all[3];
  call.groups = a.groups;
  call.threads = std::min({a.threads, s.all[0], MOST_THREADS});
  call.epsilon = a.epsilon;
  call.x = x.data();
  call.gamma = gamma.floats();
  call.beta = beta.floats();
  call.dropped = static_cast<const std::int64_t*>(dropped.data());
  call.drops = TF_Dim(dropped.tensor, 0);
  call.scale = a.scale;
  return call;
}

void compute_forward(void* kernel, TF_OpKernelContext* context) {
  const auto& a = *static_cast<Attributes*>(kernel);
  Context c{context, {}};
  Tensor x, gamma, beta, dropped, residual, y, mean, inverse, rest, variance;
  const bool adds = TF_NumInputs(context) == 5;
  if (!c.get(x, gamma, beta, dropped) || (adds && !c.get(residual))) return;
  const Sizes s(x);
  const TF_DataType type = TF_TensorType(x.tensor);
  const std::int64_t groups[] = {a.groups ? s.all[0] : s.all[3], a.groups};
  if (!c.give(y, type, s.all, 4)) return;
  for (Tensor* one : {&mean, &inverse, &rest, &variance})
    if (!c.give(*one, TF_FLOAT, groups, a.groups ? 2 : 1)) return;
  Call call = call_of(a, s, x, gamma, beta, dropped);
  call.residual = adds ? residual.data() : nullptr;
  call.y = y.data();
  call.mean = mean.floats();
  call.inverse = inverse.floats();
  call.rest = rest.floats();
  call.variance = variance.floats();
  kerasnorm_normalize(&call, type == TF_BFLOAT16, static_cast<int>(a.before), static_cast<int>(a.after));
}

void compute_backward(void* kernel, TF_OpKernelContext* context) {
  const auto& a = *static_cast<Attributes*>(kernel);
  Context c{context, {}};
  Tensor gradient, x, gamma, beta, dropped, mean, inverse, rest, dx, dgamma, dbeta;
  if (!c.get(gradient, x, gamma, beta, dropped, mean, inverse, rest)) return;
  const Sizes s(x);
  const TF_DataType type = TF_TensorType(x.tensor);
  if (!c.give(dx, type, s.all, 4) || !c.give(dgamma, TF_FLOAT, s.all + 3, 1) ||
      !c.give(dbeta, TF_FLOAT, s.all + 3, 1))
    return;
  Back back{call_of(a, s, x, gamma, beta, dropped), gradient.data(), dx.data(), dgamma.floats(),
            dbeta.floats()};
  back.c.mean = mean.floats();
  back.c.inverse = inverse.floats();
  back.c.rest = rest.floats();
  kerasnorm_differentiate(&back, type == TF_BFLOAT16, static_cast<int>(a.before), static_cast<int>(a.after));
}

// The first output has the shape of an input; those of the others are not told.
template <int INPUT> void shaped_as(TF_ShapeInferenceContext* context, TF_Status* status) {
  TF_ShapeInferenceContextSetUnknownShape(context, status);
  TF_ShapeHandle* shape = TF_NewShapeHandle();
  TF_ShapeInferenceContextGetInput(context, INPUT, shape, status);
  if (TF_GetCode(status) == TF_OK) TF_ShapeInferenceContextSetOutput(context, 0, shape, status);
  TF_DeleteShapeHandle(shape);
}

void add(const char* name, const char* const* inputs, const char* const* outputs,
         const char* attribute, void (*infer)(TF_ShapeInferenceContext*, TF_Status*),
         void (*compute)(void*, TF_OpKernelContext*)) {
  Status status;
  TF_OpDefinitionBuilder* op = TF_NewOpDefinitionBuilder(name);
  for (const char* common : {"T: {float, bfloat16}", "groups: int", "before: int", "after: int",
                             "threads: int", "epsilon: float", "scale: float"})
    TF_OpDefinitionBuilderAddAttr(op, common);
  if (attribute) TF_OpDefinitionBuilderAddAttr(op, attribute);
  for (; *inputs; ++inputs) TF_OpDefinitionBuilderAddInput(op, *inputs);
  for (; *outputs; ++outputs) TF_OpDefinitionBuilderAddOutput(op, *outputs);
  TF_OpDefinitionBuilderSetShapeInferenceFunction(op, infer);
  TF_RegisterOpDefinition(op, status);
  for (TF_DataType type : {TF_FLOAT, TF_BFLOAT16}) {
    TF_KernelBuilder* builder = TF_NewKernelBuilder(name, "CPU", create, compute, destroy);
    TF_KernelBuilder_TypeConstraint(builder, "T", type, status);
    TF_RegisterKernelBuilder(name, builder, status);
  }
}

const bool registered = [] {
  const char* into[] = {"x: T", "gamma: float", "beta: float", "dropped: int64",
                        "residuals: adds * T", nullptr};
  const char* out[] = {"y: T", "mean: float", "inverse: float", "rest: float", "variance: float",
                       nullptr};
  add("KerasnormNormalize", into, out, "adds: int >= 0", shaped_as<0>, compute_forward);
  const char* back[] = {"gradient: T", "x: T", "gamma: float", "beta: float", "dropped: int64",
                        "mean: float", "inverse: float", "rest: float", nullptr};
  const char* gradients[] = {"dx: T", "dgamma: float", "dbeta: float", nullptr};
  add("KerasnormDifferentiate", back, gradients, nullptr, shaped_as<1>, compute_backward);
  return true;
}();

}  // namespace
