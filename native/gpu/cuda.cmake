# libqwen3_cuda.so: found at run time beside the engine (load.c), so that one wheel serves machines
# with and without a GPU. nvcc does it all, as it alone knows where its headers and libraries are:
# in a toolkit, a distribution's packages and the wheels of PyPI they lie in different places.
# One generation takes half a minute to compile, so that `auto` does it for the GPUs that are here,
# and `on`, which is for wheels, for all.
set(QWEN3_CUDA auto CACHE STRING
  "the CUDA backend: auto (for this machine's GPUs, where nvcc works), on (for all) or off")
set_property(CACHE QWEN3_CUDA PROPERTY STRINGS auto on off)
set(QWEN3_CUDA_ARCHITECTURES "" CACHE STRING
  "generations to compile for in place of those, such as 75;89; later ones take the last one's PTX")

# Sets `result` to the generations of the GPUs in this machine, or `why` there is none.
function(qwen3_gpus_here result)
  find_program(QWEN3_NVIDIA_SMI nvidia-smi PATHS /usr/lib/wsl/lib DOC "lists the GPUs of NVIDIA")
  if(NOT QWEN3_NVIDIA_SMI)
    set(why "no GPU of NVIDIA is here (nvidia-smi is not found)" PARENT_SCOPE)
    return()
  endif()
  execute_process(COMMAND "${QWEN3_NVIDIA_SMI}" --query-gpu=compute_cap --format=csv,noheader
    RESULT_VARIABLE status OUTPUT_VARIABLE said ERROR_VARIABLE said)
  string(REGEX MATCHALL "[0-9]+\\.[0-9]" found "${said}")
  if(found AND status EQUAL 0)
    string(REPLACE "." "" found "${found}")
    set(${result} ${found} PARENT_SCOPE)
  else()
    string(STRIP "${said}" said)
    set(why "no GPU of NVIDIA is here (nvidia-smi: ${said})" PARENT_SCOPE)
  endif()
endfunction()

# Sets nvcc_flags for these generations, or `why` there is nothing to be built. nvcc may be older
# than a GPU: with `nearest` a generation that it does not know is served by the next lower one.
function(qwen3_check_nvcc wanted nearest)
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
  list(SORT known COMPARE NATURAL)
  foreach(number ${wanted})
    if(nearest)
      set(best "")
      foreach(each ${known})
        if(each GREATER_EQUAL 75 AND each LESS_EQUAL number)
          set(best ${each})
        endif()
      endforeach()
      set(number ${best})
    endif()
    if(number IN_LIST known)
      list(APPEND architectures ${number})
    endif()
  endforeach()
  if(NOT architectures)
    set(why "${QWEN3_NVCC} and the kernels (75 and later) have none of the generations ${wanted}"
      PARENT_SCOPE)
    if(NOT known)
      set(why "${QWEN3_NVCC} does not work: ${status} ${error}" PARENT_SCOPE)
    endif()
    return()
  endif()
  list(SORT architectures COMPARE NATURAL)
  list(REMOVE_DUPLICATES architectures)
  list(GET architectures -1 last)
  foreach(number ${architectures})
    list(APPEND codes "-gencode=arch=compute_${number},code=sm_${number}")
  endforeach()
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
  execute_process(COMMAND "${QWEN3_NVCC}" --help OUTPUT_VARIABLE help)
  if(help MATCHES "--split-compile ") # one generation on all cores, too
    list(APPEND flags --split-compile=0)
  endif()
  set(nvcc_flags ${flags} ${codes} --threads=0 -Xfatbin=-compress-all PARENT_SCOPE)
  set(architectures ${architectures} PARENT_SCOPE)
endfunction()

if(NOT QWEN3_CUDA MATCHES "^(auto|on|ON|off|OFF)$")
  message(FATAL_ERROR "QWEN3_CUDA is auto, on or off, not ${QWEN3_CUDA}")
endif()
set(wanted "")
set(nearest OFF)
if(QWEN3_CUDA MATCHES "on|ON" OR (QWEN3_CUDA STREQUAL auto AND QWEN3_PYTHON))
  set(wanted ${QWEN3_CUDA_ARCHITECTURES})
  if(NOT wanted AND QWEN3_CUDA STREQUAL auto)
    set(nearest ON)
    qwen3_gpus_here(wanted)
  elseif(NOT wanted)
    set(wanted 75 80 86 89 90 100 120)
  endif()
endif()
if(wanted)
  enable_language(CXX)
  qwen3_check_nvcc("${wanted}" ${nearest})
endif()
if(nvcc_flags)
  message(STATUS "CUDA backend: for ${architectures}, by ${QWEN3_NVCC}")
elseif(QWEN3_CUDA MATCHES "on|ON")
  message(FATAL_ERROR "QWEN3_CUDA is on, but ${why}\n"
    "Install CUDA's toolkit (https://developer.nvidia.com/cuda-downloads), or from PyPI\n"
    "  pip install nvidia-cuda-nvcc nvidia-nvvm nvidia-cuda-crt nvidia-cuda-runtime "
    "nvidia-cuda-cccl\n"
    "and set QWEN3_NVCC to the nvcc in it (site-packages/nvidia/cu13/bin/nvcc).")
elseif(why)
  message(STATUS "CUDA backend: not built: ${why}")
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
