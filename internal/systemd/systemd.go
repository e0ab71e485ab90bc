// Package systemd speaks to a service manager: the states of sd_notify(3) and
// the watchdog of sd_watchdog_enabled(3). How sockets are passed, see
// sd_listen_fds(3), is part of package handoff, since that decides who has
// started a process.
package systemd

import (
	"fmt"
	"math"
	"net"
	"strconv"
	"strings"
	"time"
)

// The variables through which a manager tells where it listens, and how often it
// wants to hear from whom.
const (
	EnvSocket       = "NOTIFY_SOCKET"
	EnvWatchdogUsec = "WATCHDOG_USEC"
	EnvWatchdogPID  = "WATCHDOG_PID"
)

// ExtendTimeout asks the manager to wait for another five seconds, see
// EXTEND_TIMEOUT_USEC in sd_notify(3). It must be repeated: a manager may forget
// it when something else happens.
const (
	ExtendTimeout = "EXTEND_TIMEOUT_USEC=5000000"
	ExtendEvery   = 500 * time.Millisecond
)

// Notify sends a state, lines of NAME=VALUE, and copies of the descriptors to
// the manager in one datagram. The socket is the value of NOTIFY_SOCKET: a path,
// or @ and an abstract name.
func Notify(socket, state string, fds ...int) error {
	return notify(socket, state, 5*time.Second, fds)
}

func notify(socket, state string, timeout time.Duration, fds []int) error {
	if !strings.HasPrefix(socket, "/") && !strings.HasPrefix(socket, "@") {
		return fmt.Errorf("%s=%q is neither a path nor an abstract socket", EnvSocket, socket)
	}
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		return err
	}
	defer c.Close()
	c.SetWriteDeadline(time.Now().Add(timeout))
	return send(c, []byte(state), fds)
}

// Watchdog returns how often the manager must hear WATCHDOG=1 from process pid,
// or 0 if it does not want to: half of WATCHDOG_USEC, as sd_watchdog_enabled(3)
// recommends.
func Watchdog(getenv func(string) string, pid int) time.Duration {
	if p := getenv(EnvWatchdogPID); p != "" && p != strconv.Itoa(pid) {
		return 0
	}
	usec, err := strconv.ParseInt(getenv(EnvWatchdogUsec), 10, 64)
	if err != nil || usec <= 0 || usec > math.MaxInt64/int64(time.Microsecond) {
		return 0
	}
	return time.Duration(usec) * time.Microsecond / 2
}

// Escape makes a text fit for one line of a state.
func Escape(text string) string {
	return strings.Join(strings.Fields(text), " ")
}

// Reloading returns the state that announces a reload. Type=notify-reload wants
// the time with it: in microseconds of the monotonic clock.
func Reloading() string {
	return fmt.Sprintf("RELOADING=1\nMONOTONIC_USEC=%d", monotonicUsec())
}
