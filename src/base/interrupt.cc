#include "base/interrupt.h"

#include <unistd.h>

#include <csignal>

#include "base/error.h"

namespace nibble {
namespace {

volatile std::sig_atomic_t interrupt_flag = 0;

void on_signal(int) {
  if (interrupt_flag != 0) _exit(130);
  interrupt_flag = 1;
}

}  // namespace

void install_interrupt_handler() {
  struct sigaction action = {};
  action.sa_handler = on_signal;
  sigaction(SIGINT, &action, nullptr);
  sigaction(SIGTERM, &action, nullptr);
}

bool interrupted() noexcept { return interrupt_flag != 0; }
void clear_interrupt() noexcept { interrupt_flag = 0; }

void throw_if_interrupted() {
  if (interrupted()) throw Interrupted();
}

}  // namespace nibble
