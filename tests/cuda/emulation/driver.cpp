// A CUDA driver that runs kernels on the processor: the functions of the driver's library that the runtime calls
// itself, and what the stand-in for PyCUDA is made of. Streams are lazy: work runs when somebody waits for it, in the
// order that streams and events allow, so that a missing wait shows.
#include <dlfcn.h>
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <ucontext.h>
#include <unistd.h>

#include <atomic>
#include <deque>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "shim.h"

dim3 threadIdx, blockIdx, blockDim, gridDim;

// ---------------------------------------------------------------- the threads of a block

namespace {

enum State { NEW, READY, AT_BLOCK, AT_WARP, DONE };
struct Fiber { jmp_buf env; ucontext_t context; char* stack; };
struct Thread { State state; Fiber* fiber; };

std::vector<Fiber*> idle;
std::vector<Thread> threads;
const std::function<void()>* kernel;
unsigned current;
jmp_buf scheduler;
ucontext_t scheduler_context;
bool diverged;
char lanes[32][32][16];             // by warp

void fiber_main() {
  for (;;) {
    (*kernel)();
    threads[current].state = DONE;
    Fiber* me = threads[current].fiber;
    if (!_setjmp(me->env)) _longjmp(scheduler, 1);
  }
}

void resume(unsigned t) {
  current = t;
  threadIdx.x = t;
  memcpy(emu_lanes, lanes[t / 32 % 32], sizeof emu_lanes);
  bool fresh = threads[t].state == NEW, first = false;
  if (fresh) {
    if (idle.empty()) {
      first = true;
      Fiber* f = new Fiber;
      getcontext(&f->context);
      f->context.uc_stack.ss_sp = f->stack = (char*)malloc(64 << 10);
      f->context.uc_stack.ss_size = 64 << 10;
      f->context.uc_link = nullptr;
      makecontext(&f->context, fiber_main, 0);
      idle.push_back(f);
    }
    threads[t].fiber = idle.back();
    idle.pop_back();
  }
  threads[t].state = READY;
  if (!_setjmp(scheduler)) {
    if (first) setcontext(&threads[t].fiber->context);
    _longjmp(threads[t].fiber->env, 1);
  }
  memcpy(lanes[current / 32 % 32], emu_lanes, sizeof emu_lanes);
  if (threads[current].state == DONE) idle.push_back(threads[current].fiber);
}

void wait(State what) {
  threads[current].state = what;
  if (!_setjmp(threads[current].fiber->env)) _longjmp(scheduler, 1);
}

void run_block(unsigned n) {
  threads.assign(n, {NEW, nullptr});
  for (;;) {
    bool ran = false, done = true;
    for (unsigned t = 0; t < n; t++) {
      if (threads[t].state == NEW || threads[t].state == READY) { resume(t); ran = true; }
    }
    for (unsigned w = 0; w < n; w += 32) {          // a warp goes on when all its threads have come
      bool all = true, any = false;
      for (unsigned t = w; t < n && t < w + 32; t++) {
        all &= threads[t].state == AT_WARP || threads[t].state == DONE;
        any |= threads[t].state == AT_WARP;
      }
      if (all && any) {
        for (unsigned t = w; t < n && t < w + 32; t++) if (threads[t].state == AT_WARP) threads[t].state = READY;
        ran = true;
      }
    }
    if (ran) continue;
    bool all = true;
    for (Thread& t : threads) { all &= t.state == AT_BLOCK || t.state == DONE; done &= t.state == DONE; }
    if (done) return;
    if (!all) { diverged = true; return; }
    for (Thread& t : threads) if (t.state == AT_BLOCK) t.state = READY;
  }
}

// ---------------------------------------------------------------- streams

struct Stream {
  std::deque<std::function<void()>> work;
  long pushed = 0, done = 0;
};
struct Event { Stream* stream = nullptr; long at = 0; };

std::mutex pushing;
std::recursive_mutex running;
std::atomic<long> syncs{0}, launches{0}, live{0};
Stream* default_stream = new Stream;
std::vector<Stream*> streams{default_stream};

Stream* get(void* handle) { return (size_t)handle <= 2 ? default_stream : (Stream*)handle; }

void push(Stream* s, std::function<void()> f) {
  std::lock_guard<std::mutex> l(pushing);
  s->work.push_back(std::move(f));
  s->pushed++;
}

void drain(Stream* s, long until) {
  std::lock_guard<std::recursive_mutex> l(running);
  for (;;) {
    std::function<void()> f;
    {
      std::lock_guard<std::mutex> l(pushing);
      if (s->done >= until || s->work.empty()) return;
      f = std::move(s->work.front());
      s->work.pop_front();
    }
    f();
    s->done++;
  }
}

void drain_all() {
  std::vector<Stream*> all;
  { std::lock_guard<std::mutex> l(pushing); all = streams; }
  for (Stream* s : all) drain(s, s->pushed);
}

thread_local void* context;
const size_t GUARD = 256;

}  // namespace

extern "C" {

char emu_lanes[32][16];
void emu_wait_block() { wait(AT_BLOCK); }
void emu_wait_warp() { wait(AT_WARP); }

int cuCtxSetCurrent(void* c) { context = c; return 0; }
int cuCtxGetCurrent(void** c) { *c = context; return 0; }

int cuLaunchKernel(void* f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned,
                   void* stream, void** arguments, void**) {
  if (!context) return 201;
  if (!gx || !bx || bx > 1024 || bx % 32 || gy * gz * by * bz != 1) return 1;
  auto* bound = ((std::function<void()>*(*)(void**))f)(arguments);
  launches++;
  push(get(stream), [=] {
    kernel = bound;
    gridDim.x = gx;
    blockDim.x = bx;
    for (blockIdx.x = 0; blockIdx.x < gx; blockIdx.x++) run_block(bx);
    delete bound;
  });
  return 0;
}

int cuMemHostAlloc(void** p, size_t n, unsigned) { *p = calloc(1, n); return 0; }
int cuMemHostGetDevicePointer_v2(void** p, void* host, unsigned) { *p = host; return 0; }

int cuModuleLoadData(void** module, const void* image) {
  // the image is a shared library, its length in front
  char path[] = "/tmp/caffe2-kernels-XXXXXX";
  int file = mkstemp(path);
  size_t n = *(const size_t*)image;
  bool written = write(file, (const char*)image + sizeof n, n) == (ssize_t)n;
  close(file);
  *module = written ? dlopen(path, RTLD_NOW | RTLD_LOCAL) : nullptr;
  if (!*module) fprintf(stderr, "%s\n", dlerror());
  unlink(path);
  return *module ? 0 : 200;
}

int cuModuleGetFunction(void** f, void* module, const char* name) {
  *f = dlsym(module, (std::string(name) + "_bind").c_str());
  return *f ? 0 : 500;
}

int cuGetErrorString(int error, const char** text) {
  static const std::map<int, const char*> texts = {
    {1, "invalid argument"}, {2, "out of memory"}, {200, "device kernel image is invalid"},
    {201, "invalid device context"}, {500, "named symbol not found"}};
  auto t = texts.find(error);
  *text = t == texts.end() ? "unknown error" : t->second;
  return 0;
}

int cuEventCreate(void** e, unsigned) { *e = new Event; return 0; }
int cuEventDestroy_v2(void* e) { delete (Event*)e; return 0; }
int cuEventRecord(void* e, void* stream) {
  std::lock_guard<std::mutex> l(pushing);
  *(Event*)e = {get(stream), get(stream)->pushed};
  return 0;
}
int cuStreamWaitEvent(void* stream, void* e, unsigned) {
  Event event = *(Event*)e;
  if (event.stream) push(get(stream), [=] { drain(event.stream, event.at); });
  return 0;
}

// ------------------------------------------------------------ for the stand-in

void* emu_stream_new() {
  Stream* s = new Stream;
  std::lock_guard<std::mutex> l(pushing);
  streams.push_back(s);
  return s;
}
void emu_stream_wait(void* s) { syncs++; drain(get(s), get(s)->pushed); }
int emu_stream_done(void* s) { return get(s)->done >= get(s)->pushed; }
void emu_event_wait(void* e) { syncs++; if (((Event*)e)->stream) drain(((Event*)e)->stream, ((Event*)e)->at); }
int emu_event_done(void* e) { return !((Event*)e)->stream || ((Event*)e)->stream->done >= ((Event*)e)->at; }
void emu_wait_all() { syncs++; drain_all(); }
long emu_syncs() { return syncs; }
long emu_launches() { return launches; }
int emu_diverged() { bool d = diverged; diverged = false; return d; }
void emu_push_copy(void* stream, void* to, const void* from, size_t n) {
  push(get(stream), [=] { memmove(to, from, n); });
}
void emu_push_call(void* stream, void (*f)(long), long argument) { push(get(stream), [=] { f(argument); }); }

// Memory has guards on both sides, and holds NaNs at first.
void* emu_new(size_t n) {
  char* p = (char*)malloc(n + 2 * GUARD);
  if (!p) return p;
  memset(p, 0x5a, GUARD);
  memset(p + GUARD, 0xff, n);
  memset(p + GUARD + n, 0x5a, GUARD);
  live += n;
  return p + GUARD;
}
int emu_intact(void* q, size_t n) {
  char* p = (char*)q - GUARD;
  for (size_t i = 0; i < GUARD; i++) if (p[i] != 0x5a || p[GUARD + n + i] != 0x5a) return 0;
  return 1;
}
void emu_delete(void* q, size_t n) { live -= n; free((char*)q - GUARD); }
long emu_live() { return live; }

}
