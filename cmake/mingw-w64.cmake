# Toolchain file: Windows x86-64 with mingw-w64. The compiler's threads must be POSIX ones or none are
# needed (the library uses Windows' own). FULGUR_TARGET_DEPS: the folder that tools/target-deps made.
set(CMAKE_SYSTEM_NAME Windows)
set(CMAKE_SYSTEM_PROCESSOR x86_64)
set(_triple x86_64-w64-mingw32)
find_program(CMAKE_C_COMPILER NAMES ${_triple}-gcc ${_triple}-gcc-posix REQUIRED)
find_program(CMAKE_CXX_COMPILER NAMES ${_triple}-g++ ${_triple}-g++-posix)
find_program(CMAKE_RC_COMPILER NAMES ${_triple}-windres)
# One file to carry: no DLLs of the compiler's.
set(CMAKE_EXE_LINKER_FLAGS_INIT -static)
set(CMAKE_SHARED_LINKER_FLAGS_INIT -static)
include(${CMAKE_CURRENT_LIST_DIR}/TargetPrefix.cmake)
