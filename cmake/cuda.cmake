# NVIDIA GPUs. The program itself never needs CUDA to start: the runtime is linked statically and finds the driver when
# first asked, cuBLASLt is opened by name. Without a CUDA compiler the library nibble_cuda does not exist.
set(NIBBLE_CUDA AUTO CACHE STRING "Build the GPU kernels: AUTO (where nvcc is found), ON or OFF")
set_property(CACHE NIBBLE_CUDA PROPERTY STRINGS AUTO ON OFF)

set(NIBBLE_WITH_CUDA OFF)
if(NOT NIBBLE_CUDA STREQUAL "OFF" AND NOT NIBBLE_SANITIZE)
  include(CheckLanguage)
  check_language(CUDA)
  if(CMAKE_CUDA_COMPILER)
    # Architectures are named below: 90a as 90a only, which CMake's own list cannot say everywhere.
    set(CMAKE_CUDA_ARCHITECTURES OFF)
    enable_language(CUDA)
    if(NOT CMAKE_CUDA20_STANDARD_COMPILE_OPTION)  # CMake 3.25 does not know it of nvcc 13
      set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION "-std=c++20")
      set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION "-std=c++20")
    endif()
    set(CMAKE_CUDA_FLAGS_RELEASE "-O2 -DNDEBUG")
    # Keeps ptxas' reports for tests/cuda/generated_code_test.cc.
    set(CMAKE_CUDA_COMPILER_LAUNCHER ${CMAKE_SOURCE_DIR}/cmake/compile_cuda.sh)
    if(CCACHE_PROGRAM)
      list(APPEND CMAKE_CUDA_COMPILER_LAUNCHER ${CCACHE_PROGRAM})
    endif()
    find_package(CUDAToolkit REQUIRED)
    set(NIBBLE_WITH_CUDA ON)
  elseif(NIBBLE_CUDA STREQUAL "ON")
    message(FATAL_ERROR "NIBBLE_CUDA is ON, but no CUDA compiler (nvcc) was found")
  endif()
endif()

set(NIBBLE_CUDA_OPTIONS --expt-relaxed-constexpr -Xcompiler=-Wall,-Wextra -Xptxas=-v --no-compress)
# Two targets: Hopper, which most kernels are written for, and everything from compute capability 8.0 to 8.9, which runs
# machine code for 8.0.
set(NIBBLE_CUDA_HOPPER --generate-code=arch=compute_90a,code=sm_90a)
set(NIBBLE_CUDA_AMPERE --generate-code=arch=compute_80,code=sm_80)
# PTX for tests on newer GPUs.
set(NIBBLE_CUDA_AMPERE_PTX --generate-code=arch=compute_80,code=compute_80)
