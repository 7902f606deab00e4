// What a stream that captures does with its work: it is noted and done at each launch of the graph.
//
// While it is noted it is also computed, for sizes and for what the next operators read; what that changed in memory
// is put back when the capture ends. A real card computes nothing then.
#pragma once
#include <functional>
#include <vector>

namespace emulated {

struct Recording {
  std::vector<std::function<void()>> work;
  std::vector<std::function<void()>> undo;
  bool broken = false;  // by something that a capture does not allow
};

}  // namespace emulated

extern "C" emulated::Recording* emulated_recording();  // of the stream that captures, or null
