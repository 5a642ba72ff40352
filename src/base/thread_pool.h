// The program's only compute threads. Workers spin for a short time after each job, then sleep, so that the
// hundreds of small jobs of one generated token cost well under a microsecond each and an idle program costs
// nothing.
#pragma once

#include <cstdint>
#include <memory>
#include <type_traits>

namespace nibble {

// Cores this process may use: its affinity mask, limited by the cgroup's CPU quota; at least 1.
int available_cores();

class ThreadPool {
 public:
  // `threads` counts the calling thread; 0 means available_cores().
  explicit ThreadPool(int threads = 0);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int size() const noexcept;

  // Calls body(task, thread) for every task in [0, tasks), each exactly once, on the pool's threads (thread 0
  // is the caller), and returns when all are done. Tasks are handed out one at a time in order; which thread
  // runs which task is not determined, so a result must not depend on it. Calls from inside a task run the
  // whole loop on that thread. If bodies throw, one of the exceptions is rethrown here after all tasks ended.
  template <typename Body>
  void parallel_for(int64_t tasks, Body&& body) {
    using Plain = std::remove_reference_t<Body>;
    run(
        tasks, [](void* context, int64_t task, int thread) { (*static_cast<Plain*>(context))(task, thread); },
        const_cast<void*>(static_cast<const void*>(&body)));
  }

 private:
  using Task = void (*)(void* context, int64_t task, int thread);
  void run(int64_t tasks, Task task, void* context);
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace nibble
