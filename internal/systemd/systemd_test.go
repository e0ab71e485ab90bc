package systemd

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"
)

func TestWatchdog(t *testing.T) {
	const pid = 4711
	for _, c := range []struct {
		usec, pid string
		want      time.Duration
	}{
		{"", "", 0},
		{"30000000", "4711", 15 * time.Second},
		{"30000000", "", 15 * time.Second}, // meant for all
		{"30000000", "4712", 0},
		{"30000000", "04711", 0},
		{"3", "", 1500 * time.Nanosecond},
		{"0", "4711", 0},
		{"-1", "4711", 0},
		{"soon", "4711", 0},
		{"99999999999999999999", "4711", 0},
	} {
		env := map[string]string{EnvWatchdogUsec: c.usec, EnvWatchdogPID: c.pid}
		if got := Watchdog(func(name string) string { return env[name] }, pid); got != c.want {
			t.Errorf("%s=%q %s=%q: every %v, want every %v", EnvWatchdogUsec, c.usec, EnvWatchdogPID, c.pid, got, c.want)
		}
	}
}

// FuzzWatchdog finds values with which the interval is none that a ticker takes.
func FuzzWatchdog(f *testing.F) {
	f.Add("30000000", "4711", 4711)
	f.Add("9223372036854775807", "", 1)
	f.Fuzz(func(t *testing.T, usec, watched string, pid int) {
		env := map[string]string{EnvWatchdogUsec: usec, EnvWatchdogPID: watched}
		if d := Watchdog(func(name string) string { return env[name] }, pid); d < 0 {
			t.Errorf("%s=%q: every %v", EnvWatchdogUsec, usec, d)
		}
	})
}

func TestEscapeKeepsATextOnOneLine(t *testing.T) {
	for text, want := range map[string]string{
		"":                          "",
		"Serving":                   "Serving",
		"exit status 2\nREADY=1":    "exit status 2 READY=1",
		"a\r\n\tb  c\n":             "a b c",
		"\nMAINPID=1\nSTOPPING=1\n": "MAINPID=1 STOPPING=1",
	} {
		if got := Escape(text); got != want {
			t.Errorf("Escape(%q) = %q, want %q", text, got, want)
		}
	}
}

// receiver listens at a notify socket.
func receiver(t *testing.T, name string) *net.UnixConn {
	t.Helper()
	if runtime.GOOS == "windows" {
		t.Skip("no datagram sockets of this kind on Windows")
	}
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetReadDeadline(time.Now().Add(10 * time.Second))
	return c
}

// path returns one that is short enough for a socket.
func path(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "notify")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return filepath.Join(dir, "socket")
}

func TestNotifySendsOneDatagram(t *testing.T) {
	sockets := []string{path(t)}
	if runtime.GOOS == "linux" {
		sockets = append(sockets, fmt.Sprintf("@grace-systemd-test/%d", os.Getpid()))
	}
	for _, socket := range sockets {
		c := receiver(t, socket)
		for _, state := range []string{"READY=1\nSTATUS=Serving", "STOPPING=1"} {
			if err := Notify(socket, state); err != nil {
				t.Fatalf("%s: %v", socket, err)
			}
			b := make([]byte, 1024)
			n, err := c.Read(b)
			if err != nil || string(b[:n]) != state {
				t.Errorf("%s: received %q, %v, want %q", socket, b[:n], err, state)
			}
		}
	}
}

func TestNotifyErrors(t *testing.T) {
	closed := path(t)
	receiver(t, closed).Close()
	for socket, want := range map[string]string{
		"":                                "neither a path nor an abstract socket",
		"relative/socket":                 "neither a path nor an abstract socket",
		"vsock:2:1234":                    "neither a path nor an abstract socket",
		closed:                            closed,
		"/" + strings.Repeat("long", 100): "invalid",
	} {
		err := Notify(socket, "READY=1")
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s=%q: %v, want an error with %q", EnvSocket, socket, err, want)
		}
	}
}

// A manager that does not read must not hold up the service for ever.
func TestNotifyGivesUpOnAManagerThatHangs(t *testing.T) {
	t.Parallel()
	socket := path(t)
	receiver(t, socket)
	for begin := time.Now(); time.Since(begin) < 30*time.Second; {
		if err := notify(socket, "WATCHDOG=1", 50*time.Millisecond, nil); errors.Is(err, os.ErrDeadlineExceeded) {
			return
		} else if err != nil {
			t.Fatal(err)
		}
	}
	t.Fatal("a socket that nobody reads takes everything")
}
