#include "base/thread_pool.h"

#include <sched.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <condition_variable>
#include <cstdio>
#include <cstring>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

#include "base/error.h"
#include "base/log.h"

namespace nibble {
namespace {

// Spinning covers the gaps between the operations of one token; sleeping starts well before a person would
// notice a fan.
constexpr double kSpinSeconds = 200e-6;

inline void pause_cpu() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

// Cores granted by cgroup v2 (cpu.max) or v1 (cfs quota), or a huge number when there is no limit.
double cgroup_core_limit() {
  double limit = 1e9;
  if (std::FILE* file = std::fopen("/sys/fs/cgroup/cpu.max", "r")) {
    char quota[32];
    double period = 0;
    if (std::fscanf(file, "%31s %lf", quota, &period) == 2 && std::strcmp(quota, "max") != 0 && period > 0) {
      limit = std::strtod(quota, nullptr) / period;
    }
    std::fclose(file);
  } else {
    double quota = -1, period = 0;
    if (std::FILE* quota_file = std::fopen("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "r")) {
      if (std::fscanf(quota_file, "%lf", &quota) != 1) quota = -1;
      std::fclose(quota_file);
    }
    if (std::FILE* period_file = std::fopen("/sys/fs/cgroup/cpu/cpu.cfs_period_us", "r")) {
      if (std::fscanf(period_file, "%lf", &period) != 1) period = 0;
      std::fclose(period_file);
    }
    if (quota > 0 && period > 0) limit = quota / period;
  }
  return limit;
}

// Index of this thread within the job it is working on; -1 outside of any.
thread_local int task_thread = -1;

}  // namespace

int available_cores() {
  cpu_set_t mask;
  CPU_ZERO(&mask);
  int cores = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
  if (sched_getaffinity(0, sizeof(mask), &mask) == 0) cores = std::max(1, CPU_COUNT(&mask));
  const double limit = cgroup_core_limit();
  if (limit < cores) cores = std::max(1, static_cast<int>(std::ceil(limit)));
  return cores;
}

// One job at a time. The gate says which job it is, whether threads may still join it, and how many have: the
// caller publishes a job's fields and opens the gate; a worker that sees it open joins by counting itself in;
// when the tasks are used up the caller shuts the gate and waits for those who joined. A worker that comes
// too late, because on a crowded machine it was not running, finds the gate shut and is not waited for.
struct ThreadPool::State {
  static constexpr uint64_t kOpen = uint64_t{1} << 16;        // bits below: workers inside
  static constexpr uint64_t kGeneration = uint64_t{1} << 17;  // bits from here: number of the job
  static uint64_t generation_of(uint64_t gate) { return gate / kGeneration; }
  static uint64_t inside(uint64_t gate) { return gate % kOpen; }

  int threads = 1;
  std::vector<std::thread> workers;

  std::atomic<uint64_t> gate{0};
  std::atomic<int64_t> next_task{0};
  int64_t tasks = 0;
  Task task = nullptr;
  void* context = nullptr;
  std::atomic<bool> stopping{false};

  std::mutex mutex;  // guards sleeping, and the first exception
  std::condition_variable wake;
  std::atomic<int> sleepers{0};
  std::exception_ptr exception;

  std::mutex callers;  // several threads may call parallel_for; jobs run one after another

  void work(int thread) noexcept {
    task_thread = thread;
    for (;;) {
      const int64_t index = next_task.fetch_add(1, std::memory_order_relaxed);
      if (index >= tasks) break;
      try {
        task(context, index, thread);
      } catch (...) {
        const std::lock_guard lock(mutex);
        if (!exception) exception = std::current_exception();
      }
    }
    task_thread = -1;
  }

  bool join(uint64_t seen) {
    uint64_t current = gate.load(std::memory_order_acquire);
    while ((current & kOpen) != 0 && generation_of(current) == seen) {
      if (gate.compare_exchange_weak(current, current + 1, std::memory_order_acq_rel)) return true;
    }
    return false;
  }

  void worker_loop(int thread) {
    uint64_t seen = 0;
    for (;;) {
      uint64_t current = generation_of(gate.load(std::memory_order_acquire));
      if (current == seen && !stopping.load(std::memory_order_acquire)) {
        const double spin_until = monotonic_seconds() + kSpinSeconds;
        for (int spins = 0; current == seen && !stopping.load(std::memory_order_acquire); ++spins) {
          if ((spins & 63) == 63 && monotonic_seconds() > spin_until) {
            std::unique_lock lock(mutex);
            sleepers.fetch_add(1);
            wake.wait(lock, [&] { return generation_of(gate.load()) != seen || stopping.load(); });
            sleepers.fetch_sub(1);
          }
          pause_cpu();
          current = generation_of(gate.load(std::memory_order_acquire));
        }
      }
      if (stopping.load(std::memory_order_acquire)) return;
      seen = current;
      if (!join(seen)) continue;
      work(thread);
      gate.fetch_sub(1, std::memory_order_release);
    }
  }
};

ThreadPool::ThreadPool(int threads) : state_(std::make_unique<State>()) {
  if (threads == 0) threads = available_cores();
  if (threads < 1 || threads > 1024)
    fail_usage("the number of threads must be between 1 and 1024, not {}", threads);
  state_->threads = threads;
  for (int i = 1; i < threads; ++i) state_->workers.emplace_back([this, i] { state_->worker_loop(i); });
}

ThreadPool::~ThreadPool() {
  {
    const std::lock_guard lock(state_->mutex);
    state_->stopping.store(true);
  }
  state_->wake.notify_all();
  for (std::thread& worker : state_->workers) worker.join();
}

int ThreadPool::size() const noexcept { return state_->threads; }

void ThreadPool::run(int64_t tasks, Task task, void* context) {
  if (tasks <= 0) return;
  State& state = *state_;
  if (state.threads == 1 || tasks == 1 || task_thread >= 0) {
    struct Restore {
      int value = task_thread;
      ~Restore() { task_thread = value; }
    } restore;
    task_thread = std::max(0, task_thread);
    for (int64_t i = 0; i < tasks; ++i) task(context, i, task_thread);
    return;
  }
  const std::lock_guard callers(state.callers);
  state.tasks = tasks;
  state.task = task;
  state.context = context;
  state.exception = nullptr;
  state.next_task.store(0, std::memory_order_relaxed);
  // Nobody is inside and the gate is shut. seq_cst: ordered with the sleepers' check below.
  const uint64_t generation = State::generation_of(state.gate.load(std::memory_order_relaxed)) + 1;
  state.gate.store(generation * State::kGeneration + State::kOpen);
  if (state.sleepers.load() > 0) {
    { const std::lock_guard lock(state.mutex); }
    state.wake.notify_all();
  }
  state.work(0);
  uint64_t gate = state.gate.fetch_and(~State::kOpen, std::memory_order_acq_rel);
  for (int spins = 0; State::inside(gate) != 0; ++spins) {
    // On a crowded machine a worker may not be running: give it our core.
    if (spins > 2000) std::this_thread::yield();
    pause_cpu();
    gate = state.gate.load(std::memory_order_acquire);
  }
  if (state.exception) std::rethrow_exception(state.exception);
}

}  // namespace nibble
