// NCCL: communicators whose members all have the caller's values.
#include <nccl.h>
#include <cstring>

struct ncclComm { int size; };
static const size_t bytes[] = {1, 1, 4, 4, 8, 8, 2, 4, 8, 2, 1, 1};  // by ncclDataType_t

extern "C" {
ncclResult_t ncclGetVersion(int* version) { *version = NCCL_VERSION_CODE; return ncclSuccess; }
ncclResult_t ncclCommInitRankConfig(ncclComm_t* made, int size, ncclUniqueId, int, ncclConfig_t*) { *made = new ncclComm{size}; return ncclSuccess; }
ncclResult_t ncclCommGetAsyncError(ncclComm_t, ncclResult_t* error) { *error = ncclSuccess; return ncclSuccess; }
ncclResult_t ncclAllGather(const void* from, void* to, size_t count, ncclDataType_t type, ncclComm_t group, cudaStream_t) {
  for (int member = 0; member < group->size; member++) memmove((char*)to + member * count * bytes[type], from, count * bytes[type]);
  return ncclSuccess;
}
const char* ncclGetErrorString(ncclResult_t) { return "null NCCL"; }
const char* ncclGetLastError(ncclComm_t) { return "null NCCL"; }
}
