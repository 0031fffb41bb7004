#include "fastdiff/parallel.h"

#include <algorithm>

#if defined(_OPENMP)
#include <omp.h>
#else
#if !defined(_WIN32)
#include <unistd.h>
#endif

#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>
#endif

namespace fastdiff {

#if defined(_OPENMP)

void parallel_ranges(int64_t count, int num_threads, void (*body)(const void*, int64_t, int64_t), const void* context) {
  const int parts = static_cast<int>(std::min<int64_t>(count, num_threads));
  if (parts <= 1) {
    body(context, 0, count);
    return;
  }
#pragma omp parallel num_threads(parts)
  {
    // Fewer threads than asked for may be given, so each takes every omp_get_num_threads()-th part.
    for (int64_t part = omp_get_thread_num(); part < parts; part += omp_get_num_threads())
      body(context, count * part / parts, count * (part + 1) / parts);
  }
}

const char* threading() { return "OpenMP"; }

#else

namespace {

// Threads that sleep until there is work. One job at a time: a second caller waits for the first.
class Pool {
public:
  void run(int64_t count, int parts, void (*body)(const void*, int64_t, int64_t), const void* context) {
    std::lock_guard<std::mutex> one_job(job_mutex_);
    std::unique_lock<std::mutex> lock(mutex_);
    while (static_cast<int>(threads_.size()) < parts - 1) {
      const int part = static_cast<int>(threads_.size()) + 1;
      threads_.emplace_back([this, part, seen = generation_] { work(part, seen); });
    }
    count_ = count, parts_ = parts, body_ = body, context_ = context;
    pending_ = parts - 1;
    ++generation_;
    start_.notify_all();
    lock.unlock();
    body(context, 0, count / parts);
    lock.lock();
    done_.wait(lock, [this] { return pending_ == 0; });
  }

  ~Pool() {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      stop_ = true;
    }
    start_.notify_all();
    for (std::thread& thread : threads_) thread.join();
  }

private:
  void work(int part, uint64_t seen) {
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      start_.wait(lock, [&] { return stop_ || generation_ != seen; });
      if (stop_) return;
      seen = generation_;
      if (part >= parts_) continue;
      const int64_t begin = count_ * part / parts_, end = count_ * (part + 1) / parts_;
      lock.unlock();
      body_(context_, begin, end);
      lock.lock();
      if (--pending_ == 0) done_.notify_one();
    }
  }

  std::mutex job_mutex_, mutex_;
  std::condition_variable start_, done_;
  std::vector<std::thread> threads_;
  uint64_t generation_ = 0;
  int64_t count_ = 0;
  int parts_ = 0, pending_ = 0;
  void (*body_)(const void*, int64_t, int64_t) = nullptr;
  const void* context_ = nullptr;
  bool stop_ = false;
};

}  // namespace

void parallel_ranges(int64_t count, int num_threads, void (*body)(const void*, int64_t, int64_t), const void* context) {
  const int parts = static_cast<int>(std::min<int64_t>(count, num_threads));
  if (parts <= 1) {
    body(context, 0, count);
    return;
  }
  // Never destroyed: at exit the threads may already be gone (Windows). A forked child has none of its parent's
  // threads.
  static Pool* pool = new Pool;
#if !defined(_WIN32)
  static pid_t owner = getpid();
  if (owner != getpid()) {
    owner = getpid();
    pool = new Pool;
  }
#endif
  pool->run(count, parts, body, context);
}

const char* threading() { return "std::thread"; }

#endif

}  // namespace fastdiff
