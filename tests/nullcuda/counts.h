// What the stubs count.
#include <atomic>
extern "C" std::atomic<long> nullcuda_launches, nullcuda_waits, nullcuda_pageable;
