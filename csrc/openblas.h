// OpenBLAS' thread count is process-wide, and SciPy's capsules do not contain it. This finds the library that SciPy
// loaded.
#pragma once
#include <dlfcn.h>
#include <link.h>

#include <cstring>
#include <string>

namespace ssdd {

struct ThreadControl {
  int (*get)() = nullptr;
  void (*set)(int) = nullptr;
};

inline int look_for_openblas(dl_phdr_info* info, size_t, void* data) {
  if (!info->dlpi_name || !std::strstr(info->dlpi_name, "openblas")) return 0;
  void* library = dlopen(info->dlpi_name, RTLD_LAZY | RTLD_NOLOAD);
  if (!library) return 0;
  auto* control = static_cast<ThreadControl*>(data);
  for (const char* prefix : {"scipy_openblas", "openblas"}) {
    const std::string name(prefix);
    auto get = reinterpret_cast<int (*)()>(dlsym(library, (name + "_get_num_threads").c_str()));
    auto set = reinterpret_cast<void (*)(int)>(dlsym(library, (name + "_set_num_threads").c_str()));
    if (get && set) {
      control->get = get;
      control->set = set;
      return 1;
    }
  }
  return 0;
}

inline ThreadControl find_openblas() {
  ThreadControl control;
  dl_iterate_phdr(&look_for_openblas, &control);
  return control;
}

}  // namespace ssdd
