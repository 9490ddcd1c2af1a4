# Compiles every module of shaders/variants.txt to SPIR-V and makes one C source of them
# (runtime/gpu/shaders.h). Modules that this glslang is too old for are left out by name.

set(_candidates glslang glslangValidator)
if(FULGUR_GLSLANG)
    set(FULGUR_GLSLANG_PROGRAM ${FULGUR_GLSLANG})
else()
    set(_hints "")
    if(FULGUR_VULKAN_PREFIX)
        list(APPEND _hints ${FULGUR_VULKAN_PREFIX}/bin)
    endif()
    if(DEFINED ENV{VULKAN_SDK})
        list(APPEND _hints $ENV{VULKAN_SDK}/bin)
    endif()
    find_program(FULGUR_GLSLANG_FOUND NAMES ${_candidates} HINTS ${_hints})
    mark_as_advanced(FULGUR_GLSLANG_FOUND)
    set(FULGUR_GLSLANG_PROGRAM ${FULGUR_GLSLANG_FOUND})
endif()
if(NOT FULGUR_GLSLANG_PROGRAM)
    message(FATAL_ERROR "glslang not found: install it (glslang-tools on Debian) or set "
        "FULGUR_GLSLANG")
endif()
execute_process(COMMAND ${FULGUR_GLSLANG_PROGRAM} --version
    OUTPUT_VARIABLE _glslang_version ERROR_QUIET RESULT_VARIABLE _glslang_result)
string(REGEX MATCH "[0-9]+:[0-9.]+" _glslang_version "${_glslang_version}")
if(NOT _glslang_result EQUAL 0 OR NOT _glslang_version)
    message(FATAL_ERROR "${FULGUR_GLSLANG_PROGRAM} --version failed: is it glslang?")
endif()
string(REGEX REPLACE "^[0-9]+:" "" FULGUR_GLSLANG_VERSION "${_glslang_version}")
message(STATUS "glslang ${FULGUR_GLSLANG_VERSION}: ${FULGUR_GLSLANG_PROGRAM}")

set(FULGUR_SHADER_DIR ${CMAKE_CURRENT_SOURCE_DIR}/shaders)
set(FULGUR_SPIRV_DIR ${CMAKE_CURRENT_BINARY_DIR}/spirv)

# Needs-words that are about the compiler as well as the device: shaders/probe/WORD.comp tells
# whether this glslang knows the extension.
function(fulgur_probe_glslang word target_env out)
    set(_source ${FULGUR_SHADER_DIR}/probe/${word}.comp)
    if(NOT EXISTS ${_source})
        set(${out} ON PARENT_SCOPE)
        return()
    endif()
    file(MAKE_DIRECTORY ${FULGUR_SPIRV_DIR}/probe)
    execute_process(
        COMMAND ${FULGUR_GLSLANG_PROGRAM} -V --target-env ${target_env}
            -o ${FULGUR_SPIRV_DIR}/probe/${word}.spv ${_source}
        RESULT_VARIABLE _result OUTPUT_QUIET ERROR_QUIET)
    if(_result EQUAL 0)
        set(${out} ON PARENT_SCOPE)
    else()
        set(${out} OFF PARENT_SCOPE)
    endif()
endfunction()

# Sets `out` to the sources that hold all modules.
function(fulgur_shader_sources out)
    set(_table ${FULGUR_SHADER_DIR}/variants.txt)
    set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${_table})
    file(STRINGS ${_table} _lines)
    file(GLOB_RECURSE _includes CONFIGURE_DEPENDS ${FULGUR_SHADER_DIR}/inc/*.glsl)
    file(MAKE_DIRECTORY ${FULGUR_SPIRV_DIR})

    set(_c_includes "")
    set(_c_entries "")
    set(_names "")
    set(_headers "")
    set(_binaries "")
    set(_line_number 0)
    foreach(_line IN LISTS _lines)
        math(EXPR _line_number "${_line_number} + 1")
        string(REGEX REPLACE "#.*$" "" _line "${_line}")
        string(STRIP "${_line}" _line)
        if(_line STREQUAL "")
            continue()
        endif()
        if(NOT _line MATCHES "^([A-Za-z0-9_]+) *\\| *([^| ]+) *\\|([^|]*)(\\|([^|]*))?$")
            message(FATAL_ERROR "shaders/variants.txt:${_line_number}: expected "
                "'name | source | defines | needs', got '${_line}'")
        endif()
        set(_name ${CMAKE_MATCH_1})
        set(_source ${FULGUR_SHADER_DIR}/${CMAKE_MATCH_2})
        string(STRIP "${CMAKE_MATCH_3}" _defines)
        string(STRIP "${CMAKE_MATCH_5}" _needs)
        string(REGEX REPLACE "[ ,]+" ";" _defines "${_defines}")
        string(REGEX REPLACE "[ ,]+" ";" _need_words "${_needs}")
        string(REPLACE ";" " " _needs "${_need_words}")
        if(NOT EXISTS ${_source})
            message(FATAL_ERROR "shaders/variants.txt:${_line_number}: no file "
                "shaders/${CMAKE_MATCH_2}")
        endif()
        if(_name IN_LIST _names)
            message(FATAL_ERROR "shaders/variants.txt:${_line_number}: '${_name}' is there twice")
        endif()
        list(APPEND _names ${_name})

        # The floor is for Vulkan 1.0 with VK_KHR_storage_buffer_storage_class, which the sources ask
        # for by a pragma.
        set(_target_env vulkan1.0)
        foreach(_word IN LISTS _need_words)
            if(NOT _word MATCHES "^(buffers[0-9]+|none|-)$")
                set(_target_env vulkan1.1)
            endif()
        endforeach()
        if("vk13" IN_LIST _need_words)
            set(_target_env vulkan1.3)
        endif()
        set(_lacking "")
        foreach(_word IN LISTS _need_words)
            if(NOT DEFINED _probe_${_word})
                set(_probe_env vulkan1.1)
                if(_word STREQUAL "coopmat2")
                    set(_probe_env vulkan1.3)
                endif()
                fulgur_probe_glslang(${_word} ${_probe_env} _probe_${_word})
            endif()
            if(NOT _probe_${_word})
                set(_lacking ${_word})
                list(APPEND _missing_${_word} ${_name})
                list(APPEND _missing_words ${_word})
                break()
            endif()
        endforeach()
        if(_lacking)
            string(APPEND _c_entries "    {\"${_name}\", NULL, 0, \"${_needs}\"},\n")
            continue()
        endif()

        set(_flags "")
        foreach(_define IN LISTS _defines)
            list(APPEND _flags -D${_define})
        endforeach()
        set(_spv ${FULGUR_SPIRV_DIR}/${_name}.spv)
        set(_header ${FULGUR_SPIRV_DIR}/${_name}.h)
        add_custom_command(
            OUTPUT ${_header} ${_spv}
            COMMAND ${FULGUR_GLSLANG_PROGRAM} -V --quiet --target-env ${_target_env}
                -I${FULGUR_SHADER_DIR}/inc ${_flags} -o ${_spv} ${_source}
            COMMAND ${CMAKE_COMMAND} -DNAME=${_name} -DSPV=${_spv} -DHEADER=${_header}
                -P ${CMAKE_CURRENT_SOURCE_DIR}/cmake/EmbedSpirv.cmake
            DEPENDS ${_source} ${_includes} ${CMAKE_CURRENT_SOURCE_DIR}/cmake/EmbedSpirv.cmake
            COMMENT "Compiling shader ${_name}"
            VERBATIM)
        list(APPEND _headers ${_header})
        list(APPEND _binaries "${_target_env} ${_spv}")
        string(APPEND _c_includes "#include \"${_name}.h\"\n")
        string(APPEND _c_entries
            "    {\"${_name}\", spirv_${_name}, sizeof spirv_${_name}, \"${_needs}\"},\n")
    endforeach()

    list(REMOVE_DUPLICATES _missing_words)
    foreach(_word IN LISTS _missing_words)
        string(REPLACE ";" ", " _list "${_missing_${_word}}")
        message(STATUS "glslang ${FULGUR_GLSLANG_VERSION} does not know '${_word}'; "
            "built without these shader variants: ${_list}")
    endforeach()

    list(LENGTH _names _count)
    set(_c ${FULGUR_SPIRV_DIR}/shader_modules.c)
    file(CONFIGURE OUTPUT ${_c} @ONLY CONTENT [[/* Generated from shaders/variants.txt. */
#include "gpu/shaders.h"

@_c_includes@
const shader_module shader_modules[] = {
@_c_entries@    {NULL, NULL, 0, NULL},
};
const uint32_t shader_module_count = @_count@;
]])
    set_source_files_properties(${_c} PROPERTIES OBJECT_DEPENDS "${_headers}")
    add_custom_target(fulgur_shaders DEPENDS ${_headers})
    set_property(GLOBAL PROPERTY FULGUR_SPIRV_MODULES "${_binaries}")
    set(${out} ${_c} ${_headers} PARENT_SCOPE)
endfunction()
