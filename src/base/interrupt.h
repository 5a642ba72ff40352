// Ctrl-C as a flag that long work polls.
#pragma once

namespace nibble {

// Installs SIGINT and SIGTERM handlers that set the flag; a second signal ends the program at once.
void install_interrupt_handler();
bool interrupted() noexcept;
void clear_interrupt() noexcept;
// Throws Interrupted when the flag is set.
void throw_if_interrupted();

}  // namespace nibble
