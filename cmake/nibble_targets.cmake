# Build helpers: one static library per folder under src/, instruction-set objects, and tests.

set(NIBBLE_WARNINGS -Wall -Wextra -Wpedantic -Werror -Wshadow -Wno-sign-compare -Wno-missing-field-initializers)

function(nibble_compile_options target)
  target_compile_options(${target} PRIVATE $<$<COMPILE_LANGUAGE:CXX>:${NIBBLE_WARNINGS}>
                                           $<$<COMPILE_LANGUAGE:CUDA>:${NIBBLE_CUDA_OPTIONS}>)
  if(NIBBLE_SANITIZE)
    target_compile_options(${target} PRIVATE -fsanitize=${NIBBLE_SANITIZE} -fno-omit-frame-pointer
                                             -fno-sanitize-recover=all)
    target_link_options(${target} PUBLIC -fsanitize=${NIBBLE_SANITIZE})
  endif()
endfunction()

# nibble_library(io SOURCES a.cc b.cc LINKS nibble_base): the static library nibble_io.
function(nibble_library name)
  cmake_parse_arguments(ARG "" "" "SOURCES;LINKS" ${ARGN})
  add_library(nibble_${name} STATIC ${ARG_SOURCES})
  target_link_libraries(nibble_${name} PUBLIC ${ARG_LINKS})
  nibble_compile_options(nibble_${name})
endfunction()

# Flags of each instruction-set path. A path compiled here is entered only after cpu_path.h said the machine has it.
set(NIBBLE_ISA_FLAGS_avx2 -mavx2 -mfma -mf16c -mbmi2)
set(NIBBLE_ISA_FLAGS_avxvnni ${NIBBLE_ISA_FLAGS_avx2} -mavxvnni)
set(NIBBLE_ISA_FLAGS_avx512vnni ${NIBBLE_ISA_FLAGS_avx2} -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512vnni
                                -mprefer-vector-width=512)
set(NIBBLE_ISA_FLAGS_avx512vbmi ${NIBBLE_ISA_FLAGS_avx512vnni} -mavx512vbmi)
set(NIBBLE_ISA_FLAGS_amx ${NIBBLE_ISA_FLAGS_avx512vnni} -mamx-tile -mamx-int8 -mamx-bf16)

# nibble_isa_objects(formats quik/cpu_kernels.isa.cc avx2 avx512vnni):
# compiles one shared source once per instruction set with NIBBLE_ISA=<name> (used as the namespace) and
# NIBBLE_ISA_<name>=1 defined, and adds the objects to nibble_<library>.
# Such sources must not instantiate anything inline from elsewhere (no std containers or algorithms): an inline function
# compiled with AVX-512 flags could be the copy the linker keeps for everyone. tests/check_isa_objects.sh enforces it.
function(nibble_isa_objects library source)
  foreach(isa ${ARGN})
    string(REGEX REPLACE "[/.]" "_" stem ${source})
    set(object nibble_${library}_${stem}_${isa})
    add_library(${object} OBJECT ${source})
    target_compile_definitions(${object} PRIVATE NIBBLE_ISA=${isa} NIBBLE_ISA_NAME="${isa}" NIBBLE_ISA_${isa}=1)
    # g++ 12 takes the deliberately undefined operands of its own AVX-512 intrinsics for mistakes (GCC bug 105593).
    target_compile_options(${object} PRIVATE ${NIBBLE_ISA_FLAGS_${isa}} -fno-exceptions -Wno-uninitialized
                                             -Wno-maybe-uninitialized)
    nibble_compile_options(${object})
    target_sources(nibble_${library} PRIVATE $<TARGET_OBJECTS:${object}>)
    set_property(GLOBAL APPEND PROPERTY NIBBLE_ISA_OBJECTS $<TARGET_OBJECTS:${object}>)
  endforeach()
endfunction()

# nibble_test(unit/io_test SOURCES ... LINKS nibble_io): a GoogleTest program whose cases ctest lists one by one.
# Tests find their data through NIBBLE_TEST_DATA (the folder tests/fixtures of the source tree).
function(nibble_test name)
  cmake_parse_arguments(ARG "" "" "SOURCES;LINKS;LABELS" ${ARGN})
  add_executable(${name} ${ARG_SOURCES})
  target_link_libraries(${name} PRIVATE ${ARG_LINKS} GTest::gtest_main)
  target_compile_definitions(${name} PRIVATE NIBBLE_TEST_DATA="${CMAKE_SOURCE_DIR}/tests/fixtures")
  nibble_compile_options(${name})
  include(GoogleTest)
  set(properties TIMEOUT 600)
  if(ARG_LABELS)
    list(APPEND properties LABELS ${ARG_LABELS})
  endif()
  gtest_discover_tests(${name} DISCOVERY_MODE PRE_TEST PROPERTIES ${properties})
endfunction()
