package handoff

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/facebookgo/grace/internal/systemd"
)

// The environment that announces inherited descriptors. The first four are
// systemd's, see sd_listen_fds(3). The last two are ours: they name the
// descriptors of the control socket, and of the socket of a supervisor.
const (
	envFDs        = "LISTEN_FDS"
	envPID        = "LISTEN_PID"
	envNames      = "LISTEN_FDNAMES"
	envPIDFD      = "LISTEN_PIDFDID"
	envControl    = "GRACE_CONTROL"
	envSupervisor = "GRACE_SUPERVISOR"
)

// firstFD is where inherited sockets start.
const firstFD = 3

// An Origin is where a process comes from.
type Origin int

const (
	// Fresh: nothing was inherited.
	Fresh Origin = iota
	// Activated: systemd, or another that follows sd_listen_fds(3), opened
	// the sockets and keeps them.
	Activated
	// Succeeded: a predecessor built on this library started the process, and
	// waits at the other end of the control socket.
	Succeeded
	// SucceededLegacy: a predecessor built on facebookgo/grace started it, and
	// waits for SIGTERM.
	SucceededLegacy
)

// An announcement is what the environment says of inherited descriptors.
type announcement struct {
	origin Origin
	count  int      // listening sockets, from firstFD on
	names  []string // one for each, or none
}

// A parent is what the parent's program is.
type parent struct {
	same    bool    // the same program file, or the same command line
	program Program // what it is built on
}

// announcement decides where a process comes from:
//
//	control  LISTEN_PID      LISTEN_FDS  started by              origin
//	true     –               n           –                       Succeeded
//	false    own pid         n           –                       Activated
//	false    absent, other   n           facebookgo/grace        SucceededLegacy
//	false    absent          n           a supervisor            Activated
//	false    absent          n           –, all n listen         Activated
//	false    absent, other   any         –                       Fresh: they leaked to it
//	false    –               –           –                       Fresh
//
// It depends on what was there at the start, and on whether that many of the descriptors
// are listening sockets. A value that cannot be meant for anybody is an error.
func (b *birth) announcement(listening func(n int) bool) (announcement, error) {
	var a announcement
	fds, listenPID, own := b.getenv(envFDs), b.getenv(envPID), strconv.Itoa(b.pid)

	if fds == "" && b.control == nil {
		return a, nil
	}
	forOther := listenPID != "" && listenPID != own
	if fds != "" {
		n, err := strconv.Atoi(fds)
		if err != nil || n < 0 {
			if b.control == nil && forOther {
				return a, nil
			}
			return a, fmt.Errorf("%s=%q is not a number of descriptors", envFDs, fds)
		}
		a.count = n
	}

	switch {
	case b.control != nil:
		a.origin = Succeeded
	case listenPID == own:
		a.origin = Activated
	case a.count > 0 && b.parent.original():
		a.origin = SucceededLegacy
	case listenPID == "" && a.count > 0 && (b.supervised() || listening(a.count)):
		a.origin = Activated
	default:
		return announcement{}, nil
	}
	if names := b.getenv(envNames); names != "" && a.origin == Activated {
		a.names = strings.Split(names, ":")
	}
	return a, nil
}

// announcing are all variables that are meant for one process only.
var announcing = []string{envFDs, envPID, envNames, envPIDFD, envControl, envSupervisor}

// managing are those that a service manager has for its main process.
var managing = []string{systemd.EnvSocket, systemd.EnvWatchdogUsec, systemd.EnvWatchdogPID}

func unsetenv(names ...string) {
	for _, name := range names {
		os.Unsetenv(name)
	}
}

// An inheritance is what the environment of a new process announces to it.
type inheritance struct {
	count      int    // listening sockets
	names      string // theirs, for one that systemd's successors are meant to see
	control    bool   // then the control socket
	supervisor bool   // then the supervisor's
}

// environ returns env for a process with an inheritance. LISTEN_PID cannot name
// a process that does not exist yet, so it is left out, and WATCHDOG_PID would
// name the wrong one.
func (i inheritance) environ(env []string) []string {
	var out []string
	for _, v := range env {
		name, _, _ := strings.Cut(v, "=")
		if name != systemd.EnvWatchdogPID && !slices.Contains(announcing, name) {
			out = append(out, v)
		}
	}
	if i.count > 0 || i.control {
		out = append(out, envFDs+"="+strconv.Itoa(i.count))
	}
	if i.names != "" {
		out = append(out, envNames+"="+i.names)
	}
	next := firstFD + i.count
	if i.control {
		out = append(out, envControl+"="+strconv.Itoa(next))
		next++
	}
	if i.supervisor {
		out = append(out, envSupervisor+"="+strconv.Itoa(next))
	}
	return out
}
