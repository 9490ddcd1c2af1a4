# What the library is built from. Sets the targets fulgur_vulkan (headers of Vulkan and volk),
# PkgConfig::FULGUR_JANSSON, Threads::Threads, with the tokenizer PkgConfig::FULGUR_PCRE2 and
# PkgConfig::FULGUR_UTF8PROC, and the variable FULGUR_LIBM.

find_package(PkgConfig REQUIRED)
# GLOBAL: a project that adds this one by add_subdirectory links these through fulgur.
pkg_check_modules(FULGUR_JANSSON REQUIRED IMPORTED_TARGET GLOBAL jansson>=2.10)
if(FULGUR_TOKENIZER)
    pkg_check_modules(FULGUR_PCRE2 REQUIRED IMPORTED_TARGET GLOBAL libpcre2-8>=10.30)
    pkg_check_modules(FULGUR_UTF8PROC REQUIRED IMPORTED_TARGET GLOBAL libutf8proc>=2.4)
endif()

if(NOT TARGET Threads::Threads)
    set(THREADS_PREFER_PTHREAD_FLAG ON)
    find_package(Threads REQUIRED)
    set_target_properties(Threads::Threads PROPERTIES IMPORTED_GLOBAL TRUE)
endif()

# Asked of the linker: where libraries are searched for another system, there is none of its compiler's.
include(CheckLibraryExists)
check_library_exists(m cosh "" FULGUR_HAS_LIBM)
if(FULGUR_HAS_LIBM)
    set(FULGUR_LIBM m)
else()
    set(FULGUR_LIBM "")
endif()

# Vulkan: headers and volk's source; the loader is opened at run time.
if(NOT "${FULGUR_VULKAN_PREFIX}" STREQUAL "${FULGUR_VULKAN_PREFIX_SEEN}")
    # A changed prefix must win over what was found before.
    unset(FULGUR_VULKAN_INCLUDE_DIR CACHE)
    unset(FULGUR_VOLK_INCLUDE_DIR CACHE)
    unset(FULGUR_GLSLANG_FOUND CACHE)
    set(FULGUR_VULKAN_PREFIX_SEEN "${FULGUR_VULKAN_PREFIX}" CACHE INTERNAL "")
endif()
set(_hints "")
if(FULGUR_VULKAN_PREFIX)
    list(APPEND _hints ${FULGUR_VULKAN_PREFIX}/include)
endif()
if(DEFINED ENV{VULKAN_SDK})
    list(APPEND _hints $ENV{VULKAN_SDK}/include)
endif()
find_path(FULGUR_VULKAN_INCLUDE_DIR vulkan/vulkan_core.h HINTS ${_hints})
find_path(FULGUR_VOLK_INCLUDE_DIR volk.c HINTS ${_hints} PATH_SUFFIXES volk)
mark_as_advanced(FULGUR_VULKAN_INCLUDE_DIR FULGUR_VOLK_INCLUDE_DIR)
if(NOT FULGUR_VULKAN_INCLUDE_DIR)
    message(FATAL_ERROR "vulkan/vulkan_core.h not found: install the Vulkan headers "
        "(libvulkan-dev on Debian) or set FULGUR_VULKAN_PREFIX")
endif()
if(NOT FULGUR_VOLK_INCLUDE_DIR)
    message(FATAL_ERROR "volk.c not found: install volk (libvulkan-volk-dev on Debian) "
        "or set FULGUR_VULKAN_PREFIX")
endif()
file(STRINGS ${FULGUR_VULKAN_INCLUDE_DIR}/vulkan/vulkan_core.h _vk_version
    REGEX "^#define VK_HEADER_VERSION [0-9]+")
string(REGEX MATCH "[0-9]+$" FULGUR_VULKAN_HEADER_VERSION "${_vk_version}")
message(STATUS "Vulkan headers ${FULGUR_VULKAN_HEADER_VERSION} in ${FULGUR_VULKAN_INCLUDE_DIR}")

add_library(fulgur_vulkan INTERFACE)
target_include_directories(fulgur_vulkan SYSTEM INTERFACE
    ${FULGUR_VULKAN_INCLUDE_DIR} ${FULGUR_VOLK_INCLUDE_DIR})
target_compile_definitions(fulgur_vulkan INTERFACE VK_NO_PROTOTYPES)
