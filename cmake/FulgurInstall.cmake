# Installs the library, its headers, a CMake package and a pkg-config file.

include(CMakePackageConfigHelpers)

install(TARGETS fulgur EXPORT fulgurTargets
    ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR}
    LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR}
    RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
install(DIRECTORY include/fulgur DESTINATION ${CMAKE_INSTALL_INCLUDEDIR} FILES_MATCHING PATTERN *.h)
if(TARGET fulgur_cli)
    install(TARGETS fulgur_cli RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
endif()

set(_package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/fulgur)
install(EXPORT fulgurTargets NAMESPACE fulgur:: DESTINATION ${_package_dir})
set(FULGUR_IS_SHARED ${BUILD_SHARED_LIBS})
set(FULGUR_HAS_TOKENIZER ${FULGUR_TOKENIZER})
configure_package_config_file(cmake/fulgurConfig.cmake.in
    ${CMAKE_CURRENT_BINARY_DIR}/fulgurConfig.cmake INSTALL_DESTINATION ${_package_dir})
write_basic_package_version_file(${CMAKE_CURRENT_BINARY_DIR}/fulgurConfigVersion.cmake
    COMPATIBILITY SameMinorVersion)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/fulgurConfig.cmake
    ${CMAKE_CURRENT_BINARY_DIR}/fulgurConfigVersion.cmake DESTINATION ${_package_dir})

# A static library's users link what it uses; a shared library brings its own.
if(BUILD_SHARED_LIBS)
    set(FULGUR_PC_REQUIRES "")
    set(FULGUR_PC_LIBS "")
    set(FULGUR_PC_CFLAGS " -DFUL_USE_SHARED")
else()
    set(FULGUR_PC_REQUIRES "jansson")
    if(FULGUR_TOKENIZER)
        string(APPEND FULGUR_PC_REQUIRES " libpcre2-8 libutf8proc")
    endif()
    set(FULGUR_PC_LIBS " ${CMAKE_THREAD_LIBS_INIT}")
    foreach(_library ${CMAKE_DL_LIBS} ${FULGUR_LIBM})
        string(APPEND FULGUR_PC_LIBS " -l${_library}")
    endforeach()
    set(FULGUR_PC_CFLAGS "")
endif()
if(IS_ABSOLUTE "${CMAKE_INSTALL_LIBDIR}")
    set(FULGUR_PC_LIBDIR ${CMAKE_INSTALL_LIBDIR})
else()
    set(FULGUR_PC_LIBDIR "\${prefix}/${CMAKE_INSTALL_LIBDIR}")
endif()
if(IS_ABSOLUTE "${CMAKE_INSTALL_INCLUDEDIR}")
    set(FULGUR_PC_INCLUDEDIR ${CMAKE_INSTALL_INCLUDEDIR})
else()
    set(FULGUR_PC_INCLUDEDIR "\${prefix}/${CMAKE_INSTALL_INCLUDEDIR}")
endif()
# The prefix follows from where the file lies, so that cmake --install --prefix works.
file(RELATIVE_PATH FULGUR_PC_UP /p/${CMAKE_INSTALL_LIBDIR}/pkgconfig /p)
string(REGEX REPLACE "/$" "" FULGUR_PC_UP "${FULGUR_PC_UP}")
configure_file(cmake/fulgur.pc.in ${CMAKE_CURRENT_BINARY_DIR}/fulgur.pc @ONLY)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/fulgur.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
