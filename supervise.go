package grace

// Supervise lets this process stay while its successors come and go, for
// process managers that want a pid that never changes: supervisord, runit,
// Docker, a terminal. Call it first in main.
//
// In the process that the manager has started it never returns. It starts the
// same command line as the first generation, becomes the parent of every later
// one (as PID 1 it is by nature, otherwise as a subreaper, see prctl(2)), passes
// signals on, waits for all of them, and exits as the last one did: with its
// status, or 128 plus the number of the signal that ended it. It serves nothing
// itself: it costs about a megabyte of memory beside the program's file, and no
// processor time while nothing happens. It keeps running the program file that the
// manager has started, even when later generations run a newer one.
//
// SIGINT, SIGTERM, SIGQUIT and SIGHUP are passed on to all generations, also to
// one that still drains, as a terminal would; other signals to the one that
// serves. SIGUSR2 waits until the first one does: until it runs Wait or Serve, or has
// called CloseParent, as one with a signal loop of its own has to. Whoever wants to end
// all at once by a second Ctrl-C or SIGTERM has to send it a second after the first, or
// later: a service manager may send the first one to all processes, so that they get it
// twice.
//
// In a generation Supervise returns nil at once. A generation whose supervisor
// was killed stops as on SIGTERM: whoever has killed it will want to start a new
// one. If the program has a signal loop of its own, it gets SIGTERM then.
//
// Generations have a process group of their own, so that Ctrl-C and Ctrl-Z reach
// them once, from the supervisor, which stays the terminal's foreground job. They
// cannot read from that terminal: that is an error there.
//
// Where a process cannot become the parent of its grandchildren the error is
// errors.ErrUnsupported: on all systems but Linux.
func Supervise() error { return supervise() }
