package handoff

import (
	"fmt"
	"os"
	"strconv"
	"strings"
)

// The environment that announces inherited sockets: the first three are
// systemd's, see sd_listen_fds(3); the last is ours and names the descriptor
// of the control socket.
const (
	envFDs     = "LISTEN_FDS"
	envPID     = "LISTEN_PID"
	envNames   = "LISTEN_FDNAMES"
	envPIDFD   = "LISTEN_PIDFDID"
	envControl = "GRACE_CONTROL"
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
	origin  Origin
	count   int      // listening sockets, from firstFD on
	names   []string // one for each, or none
	control int      // the control socket's descriptor
}

// readEnv decides where a process comes from:
//
//	GRACE_CONTROL  LISTEN_PID      LISTEN_FDS  parent        origin
//	set            –               n           –             Succeeded
//	–              own pid         n           –             Activated
//	–              absent, other   n           same program  SucceededLegacy
//	–              absent, other   any         another       Fresh: they leaked to it
//	–              –               –           –             Fresh
//
// It depends on its arguments alone. parentIsSame reports whether the parent's
// command line is the process's own; it is asked only when that matters. A
// value that cannot be meant for anybody is an error.
func readEnv(getenv func(string) string, pid int, parentIsSame func() bool) (announcement, error) {
	var a announcement
	fds, listenPID, control := getenv(envFDs), getenv(envPID), getenv(envControl)

	if fds == "" && control == "" {
		return a, nil
	}
	forOther := listenPID != "" && listenPID != strconv.Itoa(pid)
	if fds != "" {
		n, err := strconv.Atoi(fds)
		if err != nil || n < 0 {
			if control == "" && forOther {
				return a, nil
			}
			return a, fmt.Errorf("%s=%q is not a number of descriptors", envFDs, fds)
		}
		a.count = n
	}

	switch {
	case control != "":
		n, err := strconv.Atoi(control)
		if err != nil || n < firstFD {
			return announcement{}, fmt.Errorf("%s=%q is not a descriptor", envControl, control)
		}
		a.origin, a.control = Succeeded, n
	case listenPID == strconv.Itoa(pid):
		a.origin = Activated
		if names := getenv(envNames); names != "" {
			a.names = strings.Split(names, ":")
		}
	case a.count > 0 && parentIsSame():
		a.origin = SucceededLegacy
	default:
		return announcement{}, nil
	}
	return a, nil
}

// clearEnv removes the variables that readEnv has used.
func clearEnv() {
	for _, name := range []string{envFDs, envPID, envNames, envPIDFD, envControl} {
		os.Unsetenv(name)
	}
}

// successorEnv returns env for a successor that inherits count listening
// sockets and, when control is not 0, the control socket. LISTEN_PID cannot
// name a process that does not exist yet, so it is left out.
func successorEnv(env []string, count, control int) []string {
	var out []string
	for _, v := range env {
		name, _, _ := strings.Cut(v, "=")
		switch name {
		case envFDs, envPID, envNames, envPIDFD, envControl, "WATCHDOG_PID":
		default:
			out = append(out, v)
		}
	}
	out = append(out, envFDs+"="+strconv.Itoa(count))
	if control != 0 {
		out = append(out, envControl+"="+strconv.Itoa(control))
	}
	return out
}
