// A CUDA runtime without a device: memory is the host's, copies copy, kernels (`libraries.py` makes them) do nothing.
#include <cuda_runtime_api.h>
#include <sys/mman.h>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include "counts.h"

std::atomic<long> nullcuda_launches, nullcuda_waits, nullcuda_pageable, nullcuda_uploaded;  // the last in bytes
std::atomic<void*> nullcuda_capturing;

static long setting(const char* name, long otherwise) { return getenv(name) ? atol(getenv(name)) : otherwise; }
static const int devices = setting("NULLCUDA_DEVICES", 1);
static const size_t total = setting("NULLCUDA_LIMIT", 80 << 10) << 20;  // MiB of memory
static thread_local int current = 0;

// Memory, so that a pointer tells where it lies.
struct Block { size_t size; cudaMemoryType kind; };
static std::mutex lock;
static std::map<uintptr_t, Block>& blocks() { static auto* all = new std::map<uintptr_t, Block>; return *all; }
static size_t used = 0;

static cudaMemoryType kind(const void* p) {
  std::lock_guard<std::mutex> held(lock);
  auto next = blocks().upper_bound((uintptr_t)p);
  if (next == blocks().begin()) return cudaMemoryTypeUnregistered;
  auto& [start, block] = *--next;
  return (uintptr_t)p < start + block.size ? block.kind : cudaMemoryTypeUnregistered;
}
static cudaError_t take(void** p, size_t size, cudaMemoryType kind) {
  std::lock_guard<std::mutex> held(lock);
  size = size ? size : 1;
  if (kind == cudaMemoryTypeDevice && used + size > total) return cudaErrorMemoryAllocation;
  *p = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  blocks()[(uintptr_t)*p] = {size, kind};
  used += kind == cudaMemoryTypeDevice ? size : 0;
  return cudaSuccess;
}
static cudaError_t drop(void* p) {
  std::lock_guard<std::mutex> held(lock);
  auto found = blocks().find((uintptr_t)p);
  if (found == blocks().end()) return cudaSuccess;
  used -= found->second.kind == cudaMemoryTypeDevice ? found->second.size : 0;
  munmap(p, found->second.size);
  blocks().erase(found);
  return cudaSuccess;
}
static cudaError_t copy(void* to, const void* from, size_t size) {
  auto source = kind(from), target = kind(to);
  bool pageable = source == cudaMemoryTypeUnregistered || target == cudaMemoryTypeUnregistered;
  nullcuda_pageable += pageable && source != target;
  nullcuda_launches += source == target;
  nullcuda_uploaded += source != target && target == cudaMemoryTypeDevice ? size : 0;
  memmove(to, from, size);
  return cudaSuccess;
}
template <class Handle> static cudaError_t make(Handle* handle) {
  static std::atomic<uintptr_t> last{4096};
  *handle = (Handle)(last += 16);
  return cudaSuccess;
}
template <class Value> static cudaError_t give(Value* out, Value value) { *out = value; return cudaSuccess; }
static long nothing() { return 0; }

extern "C" {
cudaError_t cudaMalloc(void** p, size_t size) { return take(p, size, cudaMemoryTypeDevice); }
cudaError_t cudaHostAlloc(void** p, size_t size, unsigned) { return take(p, size, cudaMemoryTypeHost); }
cudaError_t cudaFree(void* p) { return drop(p); }
cudaError_t cudaFreeHost(void* p) { return drop(p); }
cudaError_t cudaMemGetInfo(size_t* free, size_t* all) { *all = total; return give(free, total - used); }
cudaError_t cudaMemcpy(void* to, const void* from, size_t n, cudaMemcpyKind) {
  nullcuda_waits++;
  return nullcuda_capturing ? cudaErrorStreamCaptureUnsupported : copy(to, from, n);
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t n, cudaMemcpyKind, cudaStream_t) { return copy(to, from, n); }
cudaError_t cudaMemcpyPeerAsync(void* to, int, const void* from, int, size_t n, cudaStream_t) { return copy(to, from, n); }
cudaError_t cudaMemcpy2DAsync(void* to, size_t t, const void* from, size_t f, size_t n, size_t rows, cudaMemcpyKind, cudaStream_t) {
  while (rows--) memmove((char*)to + rows * t, (const char*)from + rows * f, n);
  return cudaSuccess;
}
cudaError_t cudaMemset(void* p, int value, size_t n) { nullcuda_launches++; memset(p, value, n); return cudaSuccess; }
cudaError_t cudaMemsetAsync(void* p, int value, size_t n, cudaStream_t) { return cudaMemset(p, value, n); }
cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* a, const void* p) {
  *a = {};
  a->type = kind(p);
  if (a->type != cudaMemoryTypeUnregistered) a->devicePointer = (void*)p;
  if (a->type == cudaMemoryTypeHost) a->hostPointer = (void*)p;
  return cudaSuccess;
}
cudaError_t cudaGetSymbolAddress(void** p, const void*) { static char room[1 << 16]; return give(p, (void*)room); }

cudaError_t cudaGetDeviceCount(int* n) { return give(n, devices); }
cudaError_t cudaGetDevice(int* device) { return give(device, current); }
cudaError_t cudaSetDevice(int device) { current = device; return device < devices ? cudaSuccess : cudaErrorInvalidDevice; }
cudaError_t cudaDriverGetVersion(int* version) { return give(version, CUDART_VERSION); }
cudaError_t cudaRuntimeGetVersion(int* version) { return give(version, CUDART_VERSION); }
cudaError_t cudaDeviceCanAccessPeer(int* can, int, int) { return give(can, 1); }
cudaError_t cudaDeviceGetStreamPriorityRange(int* low, int* high) { *low = 0; return give(high, -5); }
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* p, int device) {
  *p = {};
  strcpy(p->name, "NVIDIA H100 (null)");
  p->uuid.bytes[0] = device + 1;
  p->totalGlobalMem = total;
  p->major = 9;
  p->multiProcessorCount = 132;
  p->warpSize = 32;
  p->maxThreadsPerBlock = p->maxThreadsDim[0] = p->maxThreadsDim[1] = 1024;
  p->maxThreadsDim[2] = 64;
  p->maxGridSize[0] = INT32_MAX;
  p->maxGridSize[1] = p->maxGridSize[2] = 65535;
  p->maxThreadsPerMultiProcessor = 2048;
  p->maxBlocksPerMultiProcessor = 32;
  p->regsPerBlock = p->regsPerMultiprocessor = 65536;
  p->sharedMemPerBlock = 48 << 10;
  p->sharedMemPerBlockOptin = 227 << 10;
  p->sharedMemPerMultiprocessor = 228 << 10;
  p->l2CacheSize = 50 << 20;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  cudaDeviceProp p;
  cudaGetDeviceProperties(&p, device);
  switch (attribute) {
    case cudaDevAttrComputeCapabilityMajor: return give(value, p.major);
    case cudaDevAttrComputeCapabilityMinor: return give(value, p.minor);
    case cudaDevAttrMultiProcessorCount: return give(value, p.multiProcessorCount);
    case cudaDevAttrWarpSize: return give(value, p.warpSize);
    case cudaDevAttrMaxThreadsPerBlock: return give(value, p.maxThreadsPerBlock);
    case cudaDevAttrMaxThreadsPerMultiProcessor: return give(value, p.maxThreadsPerMultiProcessor);
    case cudaDevAttrMaxGridDimX: return give(value, p.maxGridSize[0]);
    case cudaDevAttrMaxGridDimY: case cudaDevAttrMaxGridDimZ: return give(value, p.maxGridSize[1]);
    case cudaDevAttrMaxSharedMemoryPerBlock: return give(value, (int)p.sharedMemPerBlock);
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: return give(value, (int)p.sharedMemPerBlockOptin);
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor: return give(value, (int)p.sharedMemPerMultiprocessor);
    default: return give(value, 1);
  }
}

cudaError_t cudaStreamCreate(cudaStream_t* s) { return make(s); }
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* s, unsigned) { return make(s); }
cudaError_t cudaStreamCreateWithPriority(cudaStream_t* s, unsigned, int) { return make(s); }
cudaError_t cudaStreamGetPriority(cudaStream_t, int* priority) { return give(priority, 0); }
cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* s) {
  return give(s, stream && stream == nullcuda_capturing ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone);
}
cudaError_t cudaStreamGetCaptureInfo(cudaStream_t stream, cudaStreamCaptureStatus* s, unsigned long long* id, cudaGraph_t*, const cudaGraphNode_t**, const cudaGraphEdgeData**, size_t*) {
  if (id) *id = (uintptr_t)stream;
  return cudaStreamIsCapturing(stream, s);
}
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) { nullcuda_capturing = stream; return cudaSuccess; }
cudaError_t cudaStreamEndCapture(cudaStream_t, cudaGraph_t* graph) { nullcuda_capturing = nullptr; return make(graph); }
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* graph, cudaGraph_t, unsigned long long) { return make(graph); }
cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t* graph, cudaGraph_t, unsigned long long) { return make(graph); }
cudaError_t cudaGraphGetNodes(cudaGraph_t, cudaGraphNode_t*, size_t* count) { return give(count, (size_t)1); }
cudaError_t cudaGraphLaunch(cudaGraphExec_t, cudaStream_t) { nullcuda_launches++; return cudaSuccess; }
cudaError_t cudaEventCreate(cudaEvent_t* e) { return make(e); }
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* e, unsigned) { return make(e); }
cudaError_t cudaEventElapsedTime(float* ms, cudaEvent_t, cudaEvent_t) { return give(ms, 1.0f); }

cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* a, const void*) {
  *a = {};
  a->maxThreadsPerBlock = 1024;
  a->numRegs = 32;
  a->ptxVersion = a->binaryVersion = 90;
  a->maxDynamicSharedSizeBytes = 227 << 10;
  return cudaSuccess;
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* n, const void*, int, size_t) { return give(n, 4); }
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* n, const void*, int, size_t, unsigned) { return give(n, 4); }
cudaError_t __cudaGetKernel(cudaKernel_t* kernel, const void* function) { return give(kernel, (cudaKernel_t)function); }
cudaError_t cudaGetDriverEntryPointByVersion(const char*, void** f, unsigned, unsigned long long, cudaDriverEntryPointQueryResult* r) {
  if (r) *r = cudaDriverEntryPointSuccess;
  return give(f, (void*)nothing);
}
const char* cudaGetErrorString(cudaError_t e) {
  if (e == cudaErrorStreamCaptureUnsupported) return "operation not permitted when stream is capturing";
  return e == cudaErrorMemoryAllocation ? "out of memory" : "null CUDA";
}
const char* cudaGetErrorName(cudaError_t) { return "null CUDA"; }
}
