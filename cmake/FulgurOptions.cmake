# Compiler options for code of this project, by fulgur_options(target).

include(CheckCCompilerFlag)

set(FULGUR_WARNINGS "")
if(CMAKE_C_COMPILER_ID MATCHES "GNU|Clang")
    set(FULGUR_WARNINGS -Wall -Wextra -Wpedantic -Wshadow -Wconversion)
    if(MINGW)
        # Its isnan() and isinf() have a branch for float that doubles pass through unused.
        list(APPEND FULGUR_WARNINGS -Wno-float-conversion)
    endif()
    if(FULGUR_WERROR)
        list(APPEND FULGUR_WARNINGS -Werror)
    endif()
endif()

# GCC 12 for aarch64 stops with an internal error (vect_transform_reduction) at loops of several files.
set(FULGUR_SCALAR_LOOPS "")
if(CMAKE_C_COMPILER_ID STREQUAL "GNU" AND CMAKE_C_COMPILER_VERSION VERSION_LESS 13
   AND CMAKE_SYSTEM_PROCESSOR STREQUAL "aarch64")
    set(FULGUR_SCALAR_LOOPS -fno-tree-loop-vectorize)
endif()

set(FULGUR_SANITIZE_FLAGS "")
if(FULGUR_SANITIZE)
    string(REPLACE ";" "," _sanitizers "${FULGUR_SANITIZE}")
    set(FULGUR_SANITIZE_FLAGS -fsanitize=${_sanitizers} -fno-sanitize-recover=all
        -fno-omit-frame-pointer)
endif()

function(fulgur_sanitize_link target)
    if(FULGUR_SANITIZE_FLAGS)
        target_link_options(${target} PRIVATE ${FULGUR_SANITIZE_FLAGS})
    endif()
endfunction()

function(fulgur_options target)
    target_compile_options(${target} PRIVATE
        ${FULGUR_WARNINGS} ${FULGUR_SANITIZE_FLAGS} ${FULGUR_SCALAR_LOOPS})
    set_target_properties(${target} PROPERTIES
        C_STANDARD 11 C_STANDARD_REQUIRED ON C_EXTENSIONS OFF)
    fulgur_sanitize_link(${target})
endfunction()
