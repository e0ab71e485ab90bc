//go:build unix

package gracehttp

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"syscall"
	"testing"
	"time"

	"github.com/facebookgo/grace/internal/testserver/driver"
)

// A process that is told to stop answers its busy clients, also if it is told twice, as
// timeout(1) and ExecStop=kill do.
func TestStoppedProcessLosesNothingOfBusyClients(t *testing.T) {
	t.Parallel()
	for _, apart := range driver.Some([]time.Duration{-1, 0, 300 * time.Millisecond}, 3) {
		t.Run(fmt.Sprint("apart=", apart), func(t *testing.T) {
			t.Parallel()
			for range driver.Times(3, 8) {
				s := startSite(t, "tcp", "")
				// One takes longer than it takes until the second signal.
				held := s.connect()
				held.begin()
				lost := keepBusy(t, s.addr, "/takes?duration=5ms", func() {
					s.first.Signal(syscall.SIGTERM)
					if apart >= 0 {
						driver.Instant(t, apart)
						s.first.Signal(syscall.SIGTERM)
					}
					s.Line("^drain-hook")
				})
				if lost > 0 {
					t.Errorf("%d of %d clients have lost a request", lost, busyClients)
				}
				if resp := held.finish(s.first); !resp.Close {
					t.Error("the answer does not say Connection: close")
				}
				s.first.WaitExit(0)
			}
		})
	}
}

// Before the stop load balancers are told, and all that come meanwhile are served.
func TestLameDuckOfAProcess(t *testing.T) {
	t.Parallel()
	const length = 2 * time.Second
	s := startSite(t, "tcp", "", "-lame-duck", length.String(), "-idle-grace", "100ms")
	const ready = "GET /ready HTTP/1.1\r\nHost: x\r\n\r\n"
	c := s.connect()
	c.send(ready)
	if resp, _ := c.answer(); resp.StatusCode != http.StatusOK {
		t.Errorf("before the signal: %s", resp.Status)
	}
	signalled := time.Now()
	s.first.Signal(syscall.SIGTERM)
	s.Line("lame duck: ")
	c.send(ready)
	if resp, _ := c.answer(); resp.StatusCode != http.StatusServiceUnavailable || !resp.Close {
		t.Errorf("after it: %s, Connection: close %v", resp.Status, resp.Close)
	}
	pace := time.NewTicker(5 * time.Millisecond)
	defer pace.Stop()
	served := 0
	for ; ; <-pace.C {
		nc, err := net.Dial("tcp", s.addr)
		if errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.ECONNRESET) {
			break // reset: the kernel had it in the instant in which the socket was closed
		}
		if err != nil {
			t.Fatal(err)
		}
		c := newClient(nil, nc)
		_, err = io.WriteString(nc, getPid)
		if err == nil {
			_, _, err = c.tryAnswer()
		}
		nc.Close()
		if err != nil {
			t.Fatalf("connection %d, %v after the signal: %v", served, time.Since(signalled), err)
		}
		served++
	}
	if lasted := time.Since(signalled); lasted < length {
		t.Errorf("connections are refused after %v, want them served for %v", lasted, length)
	}
	t.Logf("%d new connections were served", served)
	s.first.WaitExit(0)
}

// A hijacked connection whose owner no hook could tell is closed after the idle grace.
func TestHijackedConnectionKeepsNoProcess(t *testing.T) {
	t.Parallel()
	const grace = 500 * time.Millisecond
	s := startSite(t, "tcp", "", "-no-hooks", "-idle-grace", grace.String())
	c := s.hijack()
	c.expectEcho(s.first)
	signalled := time.Now()
	s.first.Signal(syscall.SIGTERM)
	c.expectEnd()
	if lasted := time.Since(signalled); lasted < grace {
		t.Errorf("closed after %v, want %v", lasted, grace)
	}
	s.first.WaitExit(0)
}

// What follows Serve in main is not ended by a signal that comes again.
func TestCleanUpAfterServeIsNotEndedByASignal(t *testing.T) {
	t.Parallel()
	for _, sig := range driver.Some([]syscall.Signal{syscall.SIGTERM, syscall.SIGUSR2}, 3) {
		t.Run(sig.String(), func(t *testing.T) {
			t.Parallel()
			faults := driver.NewFaults(t)
			s := startSite(t, "tcp", "", "-clean-up", "-faults", string(faults))
			faults.Set(t, "clean-up")
			s.first.Signal(sig)
			s.Line(fmt.Sprintf("^cleaning-up pid=%d", s.first.Pid))
			s.first.Signal(syscall.SIGTERM)
			s.Line(fmt.Sprintf("terminated: pid %d is ending already", s.first.Pid))
			faults.Clear(t, "clean-up")
			s.first.WaitExit(0)
			s.Line(fmt.Sprintf("^returned pid=%d", s.first.Pid))
		})
	}
}

// A wrapper accepts again if the successor dies young, one that has the program's own TLS
// or says who the client is as any other.
func TestWrapperServesAgain(t *testing.T) {
	t.Parallel()
	driver.Each(t, driver.Some([]string{"proxy", "limit", "tls", "h2"}, 4), func(t *testing.T, wrapper string) {
		faults := driver.NewFaults(t)
		s := startSite(t, "wrapped-"+wrapper, "", "-faults", string(faults))
		v := s.visitor(nil)
		v.pid()
		for range 2 {
			mark := s.Mark()
			faults.Set(t, "kill-ready")
			s.first.Signal(syscall.SIGUSR2)
			s.Line(fmt.Sprintf("restart failed: .*serving (again )?with pid %d$", s.first.Pid), mark)
			faults.Clear(t, "kill-ready")
			for _, v := range []*visitor{v, s.visitor(nil)} {
				if pid := v.pid(); pid != s.first.Pid {
					t.Errorf("pid %d has answered, want %d", pid, s.first.Pid)
				}
			}
		}
		second := s.restart(s.first)
		if pid := s.visitor(nil).pid(); pid != second.Pid {
			t.Errorf("pid %d has answered, want %d", pid, second.Pid)
		}
		s.first.WaitExit(0)
		second.Signal(syscall.SIGTERM)
		second.WaitExit(0)
	})
}
