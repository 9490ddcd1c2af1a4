# The C kernels of the built-in device (runtime/cpu/kernels), compiled once for each set of
# instructions that is worth it; the processor decides at run time which are used. Sets `out` to the
# targets of their objects; belongs after fulgur_objects.
function(fulgur_cpu_kernels out)
    file(GLOB _sources CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/runtime/cpu/kernels/*.c)
    set(_sets base)
    set(_flags_base "")
    if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$" AND CMAKE_SIZEOF_VOID_P EQUAL 8)
        check_c_compiler_flag("-mavx2 -mfma -mf16c" FULGUR_KNOWS_AVX2)
        if(FULGUR_KNOWS_AVX2)
            list(APPEND _sets avx2)
            set(_flags_avx2 -mavx2 -mfma -mf16c)
            target_compile_definitions(fulgur_objects PRIVATE CPU_HAS_AVX2)
        endif()
    endif()
    # Products and sums become one instruction, and nothing depends on errno or on floating-point
    # exceptions; what is infinite or no number stays so.
    set(_flags -ffp-contract=fast -fno-math-errno -fno-trapping-math)
    if(CMAKE_C_COMPILER_ID STREQUAL "GNU")
        list(APPEND _flags -Wno-psabi) # vectors are passed to inlined functions only
    endif()
    if(CMAKE_BUILD_TYPE AND NOT CMAKE_BUILD_TYPE STREQUAL "Debug")
        list(APPEND _flags -O3)
    endif()
    set(_targets "")
    foreach(_set IN LISTS _sets)
        add_library(fulgur_cpu_${_set} OBJECT ${_sources})
        fulgur_options(fulgur_cpu_${_set})
        target_include_directories(fulgur_cpu_${_set} PRIVATE
            ${CMAKE_CURRENT_SOURCE_DIR}/include ${CMAKE_CURRENT_SOURCE_DIR}/runtime)
        target_compile_options(fulgur_cpu_${_set} PRIVATE ${_flags} ${_flags_${_set}})
        target_compile_definitions(fulgur_cpu_${_set} PRIVATE CPU_ISA=${_set})
        list(APPEND _targets fulgur_cpu_${_set})
    endforeach()
    set(${out} ${_targets} PARENT_SCOPE)
endfunction()
