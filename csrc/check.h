// The core's checks for memory safety. A message names the argument, what was expected and what came.
#pragma once
#include <stdexcept>
#include <string>

namespace ssdd {

inline void require(bool condition, const std::string& message) {
  if (!condition) throw std::invalid_argument(message);
}

}  // namespace ssdd
