package gracehttp

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/facebookgo/grace/internal/testserver/driver"
)

// A successor that is out of descriptors refuses what it cannot have.
func TestConnectionsThatDoNotFitStayHere(t *testing.T) {
	t.Parallel()
	faults := driver.NewFaults(t)
	s := startSite(t, "tcp", "", "-faults", string(faults), "-idle-grace", "8s")
	var clients []*client
	for range 300 {
		c := s.connect()
		c.send(getPid)
		c.expectPid(s.first)
		clients = append(clients, c)
	}
	faults.Set(t, "slow")
	s.first.Signal(syscall.SIGUSR2)
	waiting := s.Line(`^waiting pid=(\d+)`)
	pid, _ := strconv.Atoi(waiting[1])
	limit := syscall.Rlimit{Cur: 100, Max: 100}
	_, _, errno := syscall.Syscall6(syscall.SYS_PRLIMIT64, uintptr(pid), syscall.RLIMIT_NOFILE, uintptr(unsafe.Pointer(&limit)), 0, 0, 0)
	if errno != 0 {
		t.Fatalf("prlimit: %v", errno)
	}
	faults.Clear(t, "slow")
	second := s.Ready(2)
	s.Line("the successor takes no connections")
	for _, c := range clients {
		c.send(getPid)
	}
	moved := 0
	for i, c := range clients {
		resp, _ := c.answer()
		if pidOf(resp) == second.Pid {
			moved++
			continue
		}
		if pidOf(resp) != s.first.Pid {
			t.Errorf("client %d: answer %s from pid %d", i, resp.Status, pidOf(resp))
		}
		if resp.Close {
			c.expectEnd()
		}
	}
	for _, c := range clients {
		c.Close()
	}
	if moved >= 100 {
		t.Errorf("%d connections have moved to a process with 100 descriptors", moved)
	}
	s.first.WaitExit(0)
	c := s.connect()
	c.send(getPid)
	c.expectPid(second)
}

// Files are still sent by the kernel.
func TestSendfile(t *testing.T) {
	t.Parallel()
	strace, err := exec.LookPath("strace")
	if err != nil {
		t.Skip("no strace here")
	}
	calls := t.TempDir() + "/calls"
	file := t.TempDir() + "/file"
	if err := os.WriteFile(file, []byte(strings.Repeat("f", 1<<20)), 0o600); err != nil {
		t.Fatal(err)
	}
	server := driver.Command{Path: strace, Args: []string{
		"-f", "-qq", "--seccomp-bpf", "-e", "trace=/^sendfile(64)?$", "-e", "signal=none", "-o", calls,
		driver.Binary(t), "-mode", "http", "-listen", "127.0.0.1:0",
	}}.Start(t)
	s := &site{Server: server, t: t, protocol: "tcp", first: server.Ready(1)}
	s.addr = s.first.Addrs[0]
	c := s.connect()
	want := 0
	for range 2 {
		c.send("GET /file?path=" + file + " HTTP/1.1\r\nHost: x\r\n\r\n")
		if _, body := c.answer(); len(body) != 1<<20 {
			t.Fatalf("the file has %d bytes", len(body))
		}
		want += 1 << 20
	}
	s.first.Signal(syscall.SIGUSR2)
	second := s.Ready(2)
	c.awaitPid(second)
	c.send("GET /file?path=" + file + " HTTP/1.1\r\nHost: x\r\n\r\n")
	if _, body := c.answer(); len(body) != 1<<20 {
		t.Fatalf("the file has %d bytes", len(body))
	}
	want += 1 << 20
	second.Signal(syscall.SIGTERM)
	s.WaitEnd()
	b, err := os.ReadFile(calls)
	if err != nil {
		t.Fatal(err)
	}
	sent := 0
	for _, line := range strings.Split(string(b), "\n") {
		if i := strings.LastIndex(line, "= "); i >= 0 {
			n, _ := strconv.Atoi(strings.Fields(line[i+2:])[0])
			sent += max(n, 0)
		}
	}
	// net/http writes the beginning itself, from which it tells what it is.
	if sent < want-3*512 {
		t.Errorf("sendfile has sent %d bytes of %d:\n%s", sent, want, b)
	}
}

// Both know who serves, whatever they were doing when the time was over.
func TestSuccessorThatIsReadyAsTheTimeoutEnds(t *testing.T) {
	const timeout = 2 * time.Second
	for i := range 4 { // of what waits in the frozen process, any may be looked at first
		t.Run(strconv.Itoa(i), func(t *testing.T) {
			t.Parallel()
			faults := driver.NewFaults(t)
			s := startSite(t, "tcp", "", "-faults", string(faults), "-start-timeout", timeout.String())
			s.hijack() // keeps it
			second, thaw := s.first.FreezeInRestart(faults)
			driver.Instant(t, timeout) // it was started before
			thaw()
			s.Line(fmt.Sprintf("^outcome pid=%d .*error=<nil>", s.first.Pid)) // it accepts no more
			s.hijack()                                                        // keeps it
			third := s.restart(second)
			second.Signal(syscall.SIGKILL)
			second.Wait()
			for range 20 {
				if pid := s.visitor(nil).pid(); pid != third.Pid {
					t.Fatalf("pid %d answers, which pid %d has followed", pid, third.Pid)
				}
			}
		})
	}
}

func TestPredecessorServesAfterOneThatHadServedAgain(t *testing.T) {
	t.Parallel()
	faults := driver.NewFaults(t)
	s := startSite(t, "tcp", "", "-faults", string(faults))
	s.hijack() // keeps it
	second := s.restart(s.first)
	s.hijack() // keeps it, too: with nothing left it would have ended
	faults.Set(t, "kill-ready")
	second.Signal(syscall.SIGUSR2)
	s.Line(fmt.Sprintf("serving again with pid %d", second.Pid))
	second.Signal(syscall.SIGKILL)
	s.Line(fmt.Sprintf("serving again with pid %d", s.first.Pid))
	if pid := s.visitor(nil).pid(); pid != s.first.Pid {
		t.Errorf("pid %d answers, want %d", pid, s.first.Pid)
	}
}

// It takes as much patience as with net/http.
func TestLineBreaksKeepNoProcess(t *testing.T) {
	t.Parallel()
	s := startSite(t, "tcp", "")
	c := s.connect()
	c.send(getPid)
	c.expectPid(s.first)
	second := s.restart(s.first)
	s.first.WaitExit(0)
	ended := make(chan error, 1)
	go func() {
		for {
			if _, err := io.WriteString(c, strings.Repeat("\r\n", 1<<15)); err != nil {
				ended <- err
				return
			}
		}
	}()
	if err := within(t, ended, "the server to lose its patience"); errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the server goes on reading: %v", err)
	}
	s.restart(second)
	second.WaitExit(0)
}

// What the program sets of a connection when it comes holds after a move, too.
func TestMovedConnectionKeepsItsOptions(t *testing.T) {
	t.Parallel()
	keepAlive := make(chan int, 10)
	look := func(c net.Conn, state http.ConnState) {
		raw, err := c.(syscall.Conn).SyscallConn()
		if err != nil || state != http.StateActive {
			return
		}
		raw.Control(func(fd uintptr) {
			value, _ := syscall.GetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_KEEPALIVE)
			keepAlive <- value
		})
	}
	a := serveGeneration(t, "tcp", &http.Server{
		Handler: named("predecessor"),
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			c.(interface{ SetKeepAlive(bool) error }).SetKeepAlive(false)
			return ctx
		},
		ConnState: look,
	}, time.Hour)
	b := serveGeneration(t, "tcp", &http.Server{Handler: named("successor"), ConnState: look}, time.Hour)
	c := connect(t, a)
	c.send(get)
	c.expect("predecessor / 0")
	a.moveTo(t, b)
	a.waitEmpty(t)
	c.send(get)
	c.expect("successor / 0")
	for range 2 {
		if on := <-keepAlive; on != 0 {
			t.Error("keep-alive is on again")
		}
	}
}

// Who connects when the successor has stopped already, and its predecessor, which still
// drains, has not heard of that, is served there.
func TestPredecessorServesWhoComesAfterTheStop(t *testing.T) {
	t.Parallel()
	s := startSite(t, "tcp", "")
	held := s.hijack() // with which its http.Server is shut down already
	second := s.restart(s.first)
	s.Line(fmt.Sprintf("^shutdown-hook pid=%d", s.first.Pid))
	thaw := s.first.Freeze()
	second.Signal(syscall.SIGTERM)
	s.Line(fmt.Sprintf("pid %d ends", second.Pid))
	c := s.connect()
	c.send(getPid)
	thaw()
	if resp, _ := c.answer(); pidOf(resp) != s.first.Pid {
		t.Errorf("pid %d has answered, want %d", pidOf(resp), s.first.Pid)
	}
	held.Close()
	s.first.WaitExit(0)
}
