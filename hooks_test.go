//go:build unix

package grace_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/facebookgo/grace"
	"github.com/facebookgo/grace/internal/testserver/driver"
)

// http.Server.Shutdown, GracefulStop and the like close their listeners first, and tell
// their connections then.
func TestListenersMayBeClosedInADrain(t *testing.T) {
	for name, sig := range driver.SomeOf(map[string]syscall.Signal{"stop": syscall.SIGTERM, "handoff": syscall.SIGUSR2}, 3) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			faults := driver.NewFaults(t)
			s := driver.Start(t, tcp("-hooks", "-faults", string(faults))...)
			p := s.Ready(1)
			s.Line("^on-ready")
			c := dial(t, p.Addrs[0])
			c.servedBy(p)
			faults.Set(t, "close-listeners")
			p.Signal(sig)
			s.Line("^on-drain")
			s.Line("^closed") // though a connection is open
			c.servedBy(p)
			c.Close()
			p.WaitExit(0)
			if n := s.Count(fmt.Sprintf("^on-ready pid=%d", p.Pid)); n != 1 {
				t.Errorf("OnReady was called %d times", n)
			}
		})
	}
}

// A listener that the program has closed cannot be taken back: a process that serves
// nothing must not stay.
func TestProcessThatCannotServeAgainEnds(t *testing.T) {
	t.Parallel()
	faults := driver.NewFaults(t)
	path := filepath.Join(t.TempDir(), "pid")
	s, p, _ := startHeld(t, tcp("-hooks", "-faults", string(faults), "-pidfile", path)...)
	faults.Set(t, "close-listeners")
	p.Signal(syscall.SIGUSR2)
	second := s.Ready(2)
	s.Line("^closed")
	second.Signal(syscall.SIGKILL)
	s.Line(`restart failed: .*signal: killed.*; pid \d+ cannot serve again`)
	p.WaitExit(1)
	if s.Count("serving again") != 0 {
		t.Error("it says that it serves again")
	}
	if b, err := os.ReadFile(path); !os.IsNotExist(err) {
		t.Errorf("the PID file is left with %q, %v", b, err)
	}
}

func TestWaitParentReturnsWhenThePredecessorIsDrained(t *testing.T) {
	t.Parallel()
	s := driver.Start(t, tcp("-hooks")...)
	first := s.Ready(1)
	s.Line(fmt.Sprintf("^parent-drained pid=%d", first.Pid)) // there is none
	c := dial(t, first.Addrs[0])
	c.servedBy(first)
	first.Signal(syscall.SIGUSR2)
	second := s.Ready(2)
	s.Line("draining pid") // a second later
	drained := fmt.Sprintf("^parent-drained pid=%d", second.Pid)
	if s.Count(drained) != 0 {
		t.Error("WaitParent has returned while the predecessor drains")
	}
	c.Close()
	s.Line(drained)
	first.WaitExit(0)
}

// What follows Wait, such as closing a database, is not ended by the rest of a signal.
func TestCleanUpIsNotEndedByTheNextSignal(t *testing.T) {
	t.Parallel()
	faults := driver.NewFaults(t)
	faults.Set(t, "clean-up")
	for _, again := range []bool{false, true} {
		s := driver.Start(t, tcp("-clean-up", "-faults", string(faults))...)
		p := s.Ready(1)
		p.Signal(syscall.SIGTERM)
		s.Line("^cleaning-up")
		p.Signal(syscall.SIGTERM)
		s.Line(`terminated: pid \d+ is ending already`)
		if again {
			p.Insist(syscall.SIGTERM)
			if status := p.Wait(); status == nil || !status.Signaled() {
				t.Errorf("a second later another one has no effect: %s", driver.Describe(status))
			}
			continue
		}
		faults.Clear(t, "clean-up")
		p.WaitExit(0)
		faults.Set(t, "clean-up")
	}
}

// OnReady may be what a program does as long as it serves.
func TestNobodyWaitsForOnReady(t *testing.T) {
	grace.GoOnAfterwards(t)
	release := make(chan struct{})
	t.Cleanup(func() { close(release) })
	ctx, stop := context.WithCancel(context.Background())
	p := grace.Process{
		OnReady: func() { stop(); <-release },
		Logger:  log.New(io.Discard, "", 0),
	}
	returned := make(chan error, 1)
	go func() { returned <- p.WaitContext(ctx, nil) }()
	select {
	case err := <-returned:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(driver.Patience):
		t.Fatal("Wait waits for OnReady")
	}
}

// A hook that hangs makes nobody deaf: neither to a restart that it asks for itself, nor to
// a signal that is insisted on.
func TestHookThatHangsAtTheEnd(t *testing.T) {
	for name, sig := range driver.SomeOf(map[string]syscall.Signal{"stop": syscall.SIGTERM, "handoff": syscall.SIGUSR2}, 3) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			faults := driver.NewFaults(t)
			s := driver.Start(t, tcp("-hooks", "-faults", string(faults))...)
			p := s.Ready(1)
			faults.Set(t, "hang-drain")
			p.Signal(sig)
			s.Line("^asked .*(stopping|under way)")
			p.Insist(syscall.SIGTERM)
			if status := p.Wait(); status == nil || !status.Signaled() || status.Signal() != syscall.SIGTERM {
				t.Errorf("it ended with %s, want signal: terminated", driver.Describe(status))
			}
		})
	}
}

// What OnDrain does belongs to the drain: a successor that fails meanwhile is seen.
func TestSuccessorThatFailsWhileOnDrainRunsIsTakenBack(t *testing.T) {
	t.Parallel()
	faults := driver.NewFaults(t)
	s := driver.Start(t, tcp("-hooks", "-faults", string(faults))...)
	p := s.Ready(1)
	faults.Set(t, "hang-drain")
	p.Signal(syscall.SIGUSR2)
	second := s.Ready(2)
	s.Line("^asked .*under way")
	select {
	case <-p.Exited():
		t.Fatal("it has not waited for OnDrain")
	case <-time.After(300 * time.Millisecond): // no connection is left
	}
	second.Signal(syscall.SIGKILL)
	s.Line(fmt.Sprintf(`restart failed: .*signal: killed.*; serving again with pid %d`, p.Pid))
	servedBy(t, p.Addrs[0], p)
}

func TestSignalSentTwiceIsOneSignal(t *testing.T) {
	t.Parallel()
	s, p, c := startHeld(t, tcp()...)
	p.Signal(syscall.SIGTERM) // as timeout(1) does
	p.Signal(syscall.SIGCONT)
	p.Signal(syscall.SIGTERM)
	s.Line("stopping pid")
	c.servedBy(p)
	c.Close()
	p.WaitExit(0)
}

func TestLameDuckAcceptsUntilItStops(t *testing.T) {
	t.Parallel()
	s := driver.Start(t, tcp("-hooks", "-lame-duck", "1500ms")...)
	p := s.Ready(1)
	begin := time.Now()
	p.Signal(syscall.SIGTERM)
	s.Line("lame duck: pid")
	s.Line("^on-drain")
	c := dial(t, p.Addrs[0])
	c.servedBy(p)
	p.Signal(syscall.SIGUSR2)
	s.Line("restart signal ignored: pid \\d+ is stopping")
	c.Close()
	p.WaitExit(0)
	if took := time.Since(begin); took < 1500*time.Millisecond {
		t.Errorf("it has ended after %v", took)
	}

	// SIGINT does not wait.
	s = driver.Start(t, tcp("-hooks", "-lame-duck", "1h")...)
	p = s.Ready(1)
	p.Signal(syscall.SIGTERM)
	s.Line("lame duck: pid")
	p.Insist(syscall.SIGINT)
	p.WaitExit(0)
}

func TestOneWaitAtATime(t *testing.T) {
	grace.GoOnAfterwards(t)
	ctx, cancel := context.WithCancel(context.Background())
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ready := make(chan bool)
	p := &grace.Process{OnReady: func() { close(ready) }}
	done := make(chan error, 1)
	go func() { done <- p.WaitContext(ctx, []grace.Listener{l.(grace.Listener)}) }()
	<-ready
	if err := new(grace.Process).Wait(nil); err == nil || !strings.Contains(err.Error(), "another Wait") {
		t.Errorf("a second Wait: %v", err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Errorf("the end of its context is a stop: %v", err)
	}
	// Also if it is over before the beginning.
	if err := new(grace.Process).WaitContext(ctx, nil); err != nil {
		t.Error(err)
	}
}

func TestConnectionsOfTheProgramMove(t *testing.T) {
	t.Parallel()
	s, first, c := startHeld(t, tcp("-hooks")...)
	c.say("move early", first, "no successor serves")
	first.Signal(syscall.SIGUSR2)
	second := s.Ready(2)
	s.Line("^on-drain")
	fmt.Fprintf(c, "move its-name\n")
	s.Line(fmt.Sprintf("^on-move pid=%d state=its-name", second.Pid))
	first.WaitExit(0)
	c.servedBy(second)

	// And on; a stop waits for it.
	second.Signal(syscall.SIGUSR2)
	third := s.Ready(3)
	s.Line(fmt.Sprintf("^on-drain pid=%d", second.Pid))
	fmt.Fprintf(c, "move its-name\n")
	second.WaitExit(0)
	c.servedBy(third)
	third.Signal(syscall.SIGTERM)
	s.Line("stopping pid")
	c.servedBy(third)
	c.Close()
	third.WaitExit(0)
}

// A successor that does not answer holds nobody up for longer than Move says, however many
// call it.
func TestMoveToASuccessorThatHangs(t *testing.T) {
	t.Parallel()
	s := driver.Start(t, tcp("-hooks")...)
	first := s.Ready(1)
	clients := make([]*client, 6)
	for i := range clients {
		clients[i] = dial(t, first.Addrs[0])
		clients[i].servedBy(first)
	}
	first.Signal(syscall.SIGUSR2)
	second := s.Ready(2)
	s.Line("^on-drain")
	thaw := second.Freeze()
	start := time.Now()
	for _, c := range clients {
		fmt.Fprintf(c, "move name\n")
	}
	for _, c := range clients {
		c.say("who", first, "no answer within")
	}
	if took := time.Since(start); took > 10*time.Second {
		t.Errorf("it took %v", took)
	}
	thaw()
}

func TestOldVersionServesOnWhatItsSuccessorDoesNotTake(t *testing.T) {
	t.Parallel()
	link := driver.NewLink(t, driver.Binary(t))
	s := driver.Command{Path: string(link), Args: tcp("-hooks")}.Start(t)
	first := s.Ready(1)
	c := dial(t, first.Addrs[0])
	c.servedBy(first)
	link.Move(t, driver.Original(t))
	first.Signal(syscall.SIGUSR2)
	s.Ready(2)
	s.Line("^on-drain")
	c.say("move its-name", first, "the successor takes no connections")
	c.servedBy(first)
	c.Close()
	first.WaitExit(0)
}

func TestMoveRefusesWhatCannotMove(t *testing.T) {
	a, b := net.Pipe()
	defer b.Close()
	for _, test := range []struct {
		c     net.Conn
		state int
		want  string
	}{
		{tls.Client(a, &tls.Config{}), 0, "TLS"},
		{a, 0, "no descriptor"},
	} {
		if err := grace.Move(test.c, make([]byte, test.state)); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("moving a %T: %v, want an error with %q", test.c, err, test.want)
		}
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := grace.Move(c, nil); !errors.Is(err, grace.ErrNoSuccessor) {
		t.Errorf("without a successor: %v", err)
	}
	if err := grace.Move(c, make([]byte, 1<<20+1)); err == nil || !strings.Contains(err.Error(), "too many") {
		t.Errorf("more than a megabyte of state: %v", err)
	}
}

// A stop leaves nobody behind whom the kernel has told that he is connected.
func TestStopServesWhoWaitsInTheKernel(t *testing.T) {
	for _, name := range []string{"tcp", "unix", "tcp closed by a hook"} {
		t.Run(name, func(t *testing.T) {
			grace.GoOnAfterwards(t)
			network, _, hook := strings.Cut(name, " ")
			nl, err := net.Listen(network, map[string]string{"tcp": "127.0.0.1:0", "unix": filepath.Join(t.TempDir(), "s")}[network])
			if err != nil {
				t.Fatal(err)
			}
			l := grace.NewListener(nl.(grace.Listener))
			clients := make([]net.Conn, 5)
			for i := range clients {
				if clients[i], err = net.Dial(network, l.Addr().String()); err != nil {
					t.Fatal(err)
				}
				defer clients[i].Close()
			}
			p := &grace.Process{Logger: log.New(io.Discard, "", 0)}
			if hook {
				p.LameDuck = 200 * time.Millisecond // in which the hook is called
				p.OnDrain = func() { l.Close() }
			}
			stop, cancel := context.WithCancel(context.Background())
			cancel()
			returned := make(chan error, 1)
			go func() { returned <- p.WaitContext(stop, []grace.Listener{l}) }()
			driver.AwaitRefused(t, network, l.Addr().String())
			go func() {
				for {
					c, err := l.Accept()
					if err != nil {
						return
					}
					io.WriteString(c, "x")
					c.Close()
				}
			}()
			for i, c := range clients {
				c.SetDeadline(time.Now().Add(patience))
				if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
					t.Errorf("client %d: %v", i, err)
				}
			}
			if err := receive(t, returned, "the end of Wait"); err != nil {
				t.Error(err)
			}
		})
	}
}

// Who connects when the successor has stopped already, and its predecessor, which still
// drains, has not heard of that, is served there.
func TestPredecessorServesWhoComesAfterTheStop(t *testing.T) {
	t.Parallel()
	s, first, held := startHeld(t, tcp()...)
	first.Signal(syscall.SIGUSR2)
	second := s.Ready(2)
	awaitServedBy(t, first.Addrs[0], second, first)
	thaw := first.Freeze()
	second.Signal(syscall.SIGTERM)
	s.Line(fmt.Sprintf("pid %d ends", second.Pid))
	c := dial(t, first.Addrs[0])
	thaw()
	c.servedBy(first)
	c.Close()
	held.Close()
	first.WaitExit(0)
}
