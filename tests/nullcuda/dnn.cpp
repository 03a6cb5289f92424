// cuDNN: descriptors, one engine for every graph, and no room needed beside a tensor's own.
#include <cudnn.h>
#include <cstdlib>
#include <cstring>

template <class Descriptor> static cudnnStatus_t make(Descriptor* made) {
  *made = (Descriptor)calloc(1, 256);
  return CUDNN_STATUS_SUCCESS;
}
static cudnnStatus_t none(size_t* size) { *size = 0; return CUDNN_STATUS_SUCCESS; }

extern "C" {
size_t cudnnGetVersion() { return CUDNN_VERSION; }
size_t cudnnGetCudartVersion() { return 13000; }
const char* cudnnGetErrorString(cudnnStatus_t) { return "null cuDNN"; }
cudnnStatus_t cudnnCreate(cudnnHandle_t* handle) { return make(handle); }
cudnnStatus_t cudnnGetStream(cudnnHandle_t, cudaStream_t* stream) { *stream = nullptr; return CUDNN_STATUS_SUCCESS; }
cudnnStatus_t cudnnCreateActivationDescriptor(cudnnActivationDescriptor_t* made) { return make(made); }
cudnnStatus_t cudnnCreateTensorDescriptor(cudnnTensorDescriptor_t* made) { return make(made); }
cudnnStatus_t cudnnCreateFilterDescriptor(cudnnFilterDescriptor_t* made) { return make(made); }
cudnnStatus_t cudnnCreateConvolutionDescriptor(cudnnConvolutionDescriptor_t* made) { return make(made); }
cudnnStatus_t cudnnCreateDropoutDescriptor(cudnnDropoutDescriptor_t* made) { return make(made); }
cudnnStatus_t cudnnBackendCreateDescriptor(cudnnBackendDescriptorType_t, cudnnBackendDescriptor_t* made) { return make(made); }
cudnnStatus_t cudnnBackendGetAttribute(cudnnBackendDescriptor_t, cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type, int64_t asked, int64_t* count, void* out) {
  bool engine = type == CUDNN_TYPE_BACKEND_DESCRIPTOR && name != CUDNN_ATTR_ENGINECFG_KNOB_CHOICES;
  // an engine's size of workspace, and its shared memory; left as it is, that would be too much for attention
  size_t number = type == CUDNN_TYPE_INT64 ? 8 : type == CUDNN_TYPE_INT32 ? 4 : 0;
  if (count) *count = engine || number;
  if (out && asked) memset(out, 0, number);
  return CUDNN_STATUS_SUCCESS;
}

typedef const cudnnTensorDescriptor_t Tensor;
cudnnStatus_t cudnnGetBatchNormalizationForwardTrainingExWorkspaceSize(
    cudnnHandle_t, cudnnBatchNormMode_t, cudnnBatchNormOps_t, Tensor, Tensor, Tensor, Tensor, const cudnnActivationDescriptor_t, size_t* size) {
  return none(size);
}
cudnnStatus_t cudnnGetBatchNormalizationBackwardExWorkspaceSize(
    cudnnHandle_t, cudnnBatchNormMode_t, cudnnBatchNormOps_t, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, const cudnnActivationDescriptor_t, size_t* size) {
  return none(size);
}
cudnnStatus_t cudnnGetBatchNormalizationTrainingExReserveSpaceSize(
    cudnnHandle_t, cudnnBatchNormMode_t, cudnnBatchNormOps_t, const cudnnActivationDescriptor_t, Tensor, size_t* size) {
  return none(size);
}
}
