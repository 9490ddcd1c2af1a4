# Toolchain file: Linux aarch64 with GCC. FULGUR_TARGET_DEPS: the folder that tools/target-deps made.
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
find_program(CMAKE_C_COMPILER NAMES aarch64-linux-gnu-gcc REQUIRED)
find_program(CMAKE_CXX_COMPILER NAMES aarch64-linux-gnu-g++)
include(${CMAKE_CURRENT_LIST_DIR}/TargetPrefix.cmake)
