# libqwen3_cuda.so: found at run time beside the engine (load.c), so that one wheel serves machines
# with and without a GPU. nvcc does it all, as it alone knows where its headers and libraries are:
# in a toolkit, a distribution's packages and the wheels of PyPI they lie in different places.
# Off until the engine uses it: compiling for seven generations takes minutes.
set(QWEN3_CUDA off CACHE STRING "the CUDA backend: auto (where nvcc works), on or off")
set_property(CACHE QWEN3_CUDA PROPERTY STRINGS auto on off)
set(QWEN3_CUDA_ARCHITECTURES 75 80 86 89 90 100 120 CACHE STRING
  "GPUs to compile for, as far as nvcc knows them; later ones take the PTX of the last")

# Sets nvcc_flags, or `why` there is nothing to be built.
function(qwen3_check_nvcc)
  if(DEFINED ENV{QWEN3_NVCC})
    set(QWEN3_NVCC "$ENV{QWEN3_NVCC}" CACHE FILEPATH "CUDA's compiler")
  endif()
  find_program(QWEN3_NVCC nvcc PATHS /usr/local/cuda/bin DOC "CUDA's compiler")
  if(NOT QWEN3_NVCC)
    set(why "nvcc is not found" PARENT_SCOPE)
    return()
  endif()
  execute_process(COMMAND "${QWEN3_NVCC}" --list-gpu-code RESULT_VARIABLE status
    OUTPUT_VARIABLE known ERROR_VARIABLE error)
  string(REGEX MATCHALL "[0-9]+" known "${known}")
  foreach(number ${QWEN3_CUDA_ARCHITECTURES})
    if(number IN_LIST known)
      list(APPEND codes "-gencode=arch=compute_${number},code=sm_${number}")
      set(last ${number})
    endif()
  endforeach()
  if(NOT last)
    set(why "${QWEN3_NVCC} knows none of ${QWEN3_CUDA_ARCHITECTURES}: ${status} ${error}"
      PARENT_SCOPE)
    return()
  endif()
  list(APPEND codes "-gencode=arch=compute_${last},code=compute_${last}")
  set(flags -std=c++17 -O3 -fmad=false "-I${PROJECT_SOURCE_DIR}/native"
    "-ccbin=${CMAKE_CXX_COMPILER}" -Xcompiler=-fPIC,-fvisibility=hidden)

  # It may lack parts, or refuse the host's compiler.
  set(trial "${PROJECT_BINARY_DIR}/CMakeFiles/qwen3_cuda_trial")
  file(WRITE "${trial}.cu" "#include <cuda_fp16.h>\n#include <cuda_runtime_api.h>\n"
    "__global__ void k(const __grid_constant__ __half x, float *y) { *y = __half2float(x); }\n")
  execute_process(COMMAND "${QWEN3_NVCC}" ${flags} -arch=sm_${last} -shared
    "${trial}.cu" -o "${trial}.so"
    RESULT_VARIABLE status OUTPUT_VARIABLE error ERROR_VARIABLE error)
  if(NOT status EQUAL 0)
    set(why "${QWEN3_NVCC} does not work: ${error}" PARENT_SCOPE)
    return()
  endif()
  set(nvcc_flags ${flags} ${codes} --threads=0 -Xfatbin=-compress-all PARENT_SCOPE)
endfunction()

if(NOT QWEN3_CUDA MATCHES "^(auto|on|ON|off|OFF)$")
  message(FATAL_ERROR "QWEN3_CUDA is auto, on or off, not ${QWEN3_CUDA}")
endif()
if(QWEN3_CUDA MATCHES "on|ON" OR (QWEN3_CUDA STREQUAL auto AND QWEN3_PYTHON))
  enable_language(CXX)
  qwen3_check_nvcc()
  if(nvcc_flags)
    message(STATUS "CUDA backend: ${QWEN3_NVCC}")
  elseif(QWEN3_CUDA STREQUAL auto)
    message(STATUS "CUDA backend: not built: ${why}")
  else()
    message(FATAL_ERROR "QWEN3_CUDA is on, but ${why}\n"
      "Install CUDA's toolkit (https://developer.nvidia.com/cuda-downloads), or from PyPI\n"
      "  pip install nvidia-cuda-nvcc nvidia-nvvm nvidia-cuda-crt nvidia-cuda-runtime "
      "nvidia-cuda-cccl\n"
      "and set QWEN3_NVCC to the nvcc in it (site-packages/nvidia/cu13/bin/nvcc).")
  endif()
endif()
if(nvcc_flags)
  function(qwen3_nvcc_object source object) # and more flags
    add_custom_command(OUTPUT ${object} DEPFILE ${object}.d DEPENDS "${source}"
      COMMAND "${QWEN3_NVCC}" ${nvcc_flags} ${ARGN} -MMD -MF ${object}.d -MT ${object}
        -c "${source}" -o ${object}
      COMMENT "nvcc ${source}" VERBATIM)
  endfunction()
  set(here "${PROJECT_SOURCE_DIR}/native/gpu")
  set(warnings "-Xcompiler=-Wall,-Wextra$<$<BOOL:${QWEN3_WERROR}>:,-Werror>")
  qwen3_nvcc_object("${here}/kernels.cu" qwen3_cuda_kernels.o)
  qwen3_nvcc_object("${here}/cuda.cpp" qwen3_cuda.o "${warnings}")
  add_library(qwen3_cuda_error STATIC native/error.c)
  set(QWEN3_CUDA_LIBRARY "${PROJECT_BINARY_DIR}/libqwen3_cuda.so")
  set(objects qwen3_cuda_kernels.o qwen3_cuda.o)
  add_custom_command(OUTPUT "${QWEN3_CUDA_LIBRARY}"
    DEPENDS ${objects} qwen3_cuda_error "${here}/cuda.map"
    COMMAND "${QWEN3_NVCC}" ${nvcc_flags} -shared -cudart=static ${objects}
      $<TARGET_FILE:qwen3_cuda_error>
      "-Xlinker=--version-script=${here}/cuda.map,-z,defs" -o "${QWEN3_CUDA_LIBRARY}"
    COMMENT "nvcc libqwen3_cuda.so" VERBATIM)
  add_custom_target(qwen3_cuda ALL DEPENDS "${QWEN3_CUDA_LIBRARY}")
endif()
