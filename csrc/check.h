// The one family of checks that the core makes for memory safety; messages name what was expected and what came.
#pragma once
#include <stdexcept>
#include <string>

namespace ssdd {

inline void require(bool condition, const std::string& message) {
  if (!condition) throw std::invalid_argument(message);
}

}  // namespace ssdd
