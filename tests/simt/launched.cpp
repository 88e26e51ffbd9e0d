// Prints the last lines of simt_tests: the addresses in the program of all kernels that were launched, and of those that
// each test launched in the rows of the smaller sample that was asked about. Its symbols translate them to names.
#include <cstdio>
#include <set>
#include <string>

#include "runtime.h"

extern "C" const char __executable_start;  // the linker's

namespace {

struct AtTheEnd {
  ~AtTheEnd() {
    for (const auto& [name, kernels] : simt::named_launches()) print("sample of " + name, kernels);
    print("launched", simt::launched());
  }

  static void print(const std::string& head, const std::set<const void*>& kernels) {
    std::printf("%s:", head.c_str());
    for (const void* kernel : kernels) std::printf(" %tx", static_cast<const char*>(kernel) - &__executable_start);
    std::printf("\n");
  }
} at_the_end;

}  // namespace
