// Prints the layer's message if a GPU, its driver or code for it is missing: `missing` asks this machine, `missing
// NAME` simulates an error of another one.
#include <simt.cuh>

#include <cstdio>
#include <cstring>

SIMT_KERNEL(32) void nothing_kernel() { simt::wait_for_earlier_launches(); }

int main(int argc, char** argv) {
  const char* name = argc > 1 ? argv[1] : "";
  const struct {
    const char* name;
    cudaError_t error;
  } table[] = {{"no_gpu", cudaErrorNoDevice},
               {"driver_too_old", cudaErrorInsufficientDriver},
               {"architecture_not_built", cudaErrorNoKernelImageForDevice},
               {"ptx_too_new", cudaErrorUnsupportedPtxVersion},
               {"something_else", cudaErrorIllegalAddress}};
  try {
    for (const auto& row : table)
      if (std::strcmp(row.name, name) == 0) simt::check(row.error, "loading the kernels");
    if (argc == 1) simt::check_loads(&nothing_kernel);
  } catch (const std::exception& failure) {
    std::printf("%s\n", failure.what());
    return 3;
  }
  std::printf("nothing is missing\n");
  return 0;
}
