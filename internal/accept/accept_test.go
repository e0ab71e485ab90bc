package accept

import (
	"context"
	"errors"
	"math/rand"
	"net"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// patience is how long anything may take that must not take forever.
const patience = 30 * time.Second

// within fails the test if f does not return.
func within(t *testing.T, what string, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	select {
	case <-done:
	case <-time.After(patience):
		t.Fatalf("%s has not returned within %v", what, patience)
	}
}

// listen returns a listener on a free port.
func listen(t *testing.T) (*Listener, *net.TCPListener) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return New(l), l.(*net.TCPListener)
}

func dial(t *testing.T, l net.Listener) net.Conn {
	t.Helper()
	c, err := net.Dial(l.Addr().Network(), l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

type accepted struct {
	conn net.Conn
	err  error
}

// acceptOne calls Accept, and Admit for what it brings.
func acceptOne(g *Listener) <-chan accepted {
	result := make(chan accepted, 1)
	go func() {
		c, err := g.Accept()
		if err == nil {
			g.Admit(&Entry{Conn: c})
		}
		result <- accepted{c, err}
	}()
	return result
}

func receive[T any](t *testing.T, what string, c <-chan T) (v T) {
	t.Helper()
	select {
	case v = <-c:
	case <-time.After(patience):
		t.Fatalf("%s: nothing happened within %v", what, patience)
	}
	return v
}

// A fakeListener shows when its methods are called, and accepts what the test
// gives it.
type fakeListener struct {
	conns     chan net.Conn
	deadlines chan time.Time
	closes    atomic.Int32
	ended     chan struct{}
}

func newFake() *fakeListener {
	return &fakeListener{conns: make(chan net.Conn), deadlines: make(chan time.Time, 10), ended: make(chan struct{})}
}

var errFake = errors.New("the fake listener's Accept was ended")

func (l *fakeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.ended:
		return nil, errFake
	}
}

func (l *fakeListener) Close() error {
	if l.closes.Add(1) == 1 {
		close(l.ended)
	}
	return nil
}

func (l *fakeListener) Addr() net.Addr { return &net.TCPAddr{} }

func (l *fakeListener) SetDeadline(d time.Time) error {
	l.deadlines <- d
	return nil
}

// A plainListener has no more than net.Listener asks for.
type plainListener struct{ net.Listener }

func TestPausedListenerLeavesConnectionsToTheKernel(t *testing.T) {
	g, l := listen(t)
	waiting := acceptOne(g)
	if !g.Pause() {
		t.Fatal("a TCP listener cannot be paused")
	}
	client := dial(t, l)
	if _, err := client.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	select {
	case a := <-waiting:
		t.Fatalf("Accept returned %v, %v while the listener was paused", a.conn, a.err)
	default:
	}
	if c := g.Count(); c.Open != 0 || !c.Oldest.IsZero() {
		t.Fatalf("%d connections are listed of a paused listener, the oldest since %v", c.Open, c.Oldest)
	}

	g.Resume()
	a := receive(t, "Accept after Resume", waiting)
	if a.err != nil {
		t.Fatalf("Accept after Resume: %v", a.err)
	}
	if got, want := a.conn.RemoteAddr().String(), client.LocalAddr().String(); got != want {
		t.Errorf("after Resume a connection from %s was accepted, want %s, which had waited", got, want)
	}
}

func TestPauseMayBeRepeated(t *testing.T) {
	g, l := listen(t)
	waiting := acceptOne(g)
	within(t, "Pause twice", func() { g.Pause(); g.Pause() })
	g.Resume()
	dial(t, l)
	if a := receive(t, "Accept", waiting); a.err != nil {
		t.Errorf("two Pauses need more than one Resume: Accept returned %v", a.err)
	}
}

func TestPauseWaitsForConnectionsOnTheirWay(t *testing.T) {
	l := newFake()
	g := New(l)
	theirs, ours := net.Pipe()
	defer theirs.Close()
	accepted := make(chan net.Conn)
	go func() {
		c, _ := g.Accept()
		accepted <- c
	}()
	l.conns <- ours
	c := receive(t, "Accept", accepted)

	listed := make(chan int, 1)
	go func() {
		g.Pause()
		open := g.Count().Open
		listed <- open
	}()
	receive(t, "Pause's SetDeadline", l.deadlines)
	select {
	case n := <-listed:
		t.Fatalf("Pause has returned with %d connections listed, before the one that was accepted is", n)
	default:
	}
	g.Admit(&Entry{Conn: c})
	if n := receive(t, "Pause", listed); n != 1 {
		t.Errorf("%d connections listed after Pause, want 1", n)
	}
}

func TestListenerWithoutDeadlineCannotBePaused(t *testing.T) {
	g := New(plainListener{newFake()})
	if g.Pause() {
		t.Error("Pause has returned true for a listener whose Accept cannot be called back")
	}
	g.Resume()
	if err := g.Close(); err != nil {
		t.Error(err)
	}
}

func TestEndLetsAcceptFailAndReopenUndoesIt(t *testing.T) {
	g, l := listen(t)
	waiting := acceptOne(g)
	within(t, "End", g.End)
	if a := receive(t, "Accept", waiting); a.err != net.ErrClosed {
		t.Errorf("Accept that was waiting at End returned %v, want net.ErrClosed", a.err)
	}
	if _, err := g.Accept(); err != net.ErrClosed {
		t.Errorf("Accept after End returned %v, want net.ErrClosed", err)
	}

	g.Resume()
	if _, err := g.Accept(); err != net.ErrClosed {
		t.Errorf("Accept after End and Resume returned %v, want net.ErrClosed", err)
	}

	client := dial(t, l) // the listener is open
	g.Reopen()
	g.Resume()
	a := receive(t, "Accept after Reopen and Resume", acceptOne(g))
	if a.err != nil {
		t.Fatalf("Accept after Reopen and Resume: %v", a.err)
	}
	if got, want := a.conn.RemoteAddr().String(), client.LocalAddr().String(); got != want {
		t.Errorf("accepted a connection from %s, want %s", got, want)
	}
}

// A late one tells late that its deadline is over.
type late struct {
	*net.TCPListener
	calls, tell chan bool
}

func (l *late) Accept() (net.Conn, error) {
	l.calls <- true
	<-l.tell
	return nil, os.ErrDeadlineExceeded
}

// It may notice the end when that is over: it is not to accept beside the next one.
func TestAcceptThatWasEndedStaysSo(t *testing.T) {
	_, socket := listen(t)
	l := &late{socket, make(chan bool, 2), make(chan bool, 2)}
	g := NewWrapped(l, l)
	waiting := acceptOne(g)
	receive(t, "a call of Accept", l.calls)
	g.End()
	g.Reopen()
	g.Resume()
	l.tell <- true
	if a := receive(t, "Accept", waiting); a.err != net.ErrClosed {
		t.Errorf("Accept that was ended returned %v, want net.ErrClosed", a.err)
	}
}

func TestEndWakesAcceptThatWaitsForResume(t *testing.T) {
	g, _ := listen(t)
	g.Pause()
	waiting := acceptOne(g)
	g.End()
	if a := receive(t, "Accept", waiting); a.err != net.ErrClosed {
		t.Errorf("Accept returned %v, want net.ErrClosed", a.err)
	}
}

func TestCloseEndsEveryAccept(t *testing.T) {
	for _, test := range []struct {
		name    string
		prepare func(*Listener)
	}{
		{"open", func(*Listener) {}},
		{"paused", func(g *Listener) { g.Pause() }},
		{"ended", (*Listener).End},
		{"resumed", func(g *Listener) { g.Pause(); g.Resume() }},
	} {
		t.Run(test.name, func(t *testing.T) {
			g, l := listen(t)
			test.prepare(g)
			waiting := []<-chan accepted{acceptOne(g), acceptOne(g), acceptOne(g)}
			if err := g.Close(); err != nil {
				t.Fatal(err)
			}
			for _, w := range append(waiting, acceptOne(g)) {
				if a := receive(t, "Accept", w); a.err != net.ErrClosed {
					t.Errorf("Accept returned %v, want net.ErrClosed", a.err)
				}
			}
			if c, err := net.Dial("tcp", l.Addr().String()); err == nil {
				c.Close()
				t.Error("the listener is still open after Close")
			}
			within(t, "Pause, End, Reopen and Resume of a closed listener", func() {
				g.Pause()
				g.End()
				g.Reopen()
				g.Resume()
			})
			if _, err := g.Accept(); err != net.ErrClosed {
				t.Errorf("Accept after Close and Resume returned %v, want net.ErrClosed", err)
			}
		})
	}
}

func TestCloseClosesOnce(t *testing.T) {
	l := newFake()
	g := New(l)
	var wg sync.WaitGroup
	for range 8 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			if err := g.Close(); err != nil {
				t.Error(err)
			}
		}()
	}
	wg.Wait()
	if n := l.closes.Load(); n != 1 {
		t.Errorf("the listener was closed %d times, want once", n)
	}
}

// A slowlyClosing wrapper waits in its Close for what it has accepted.
type slowlyClosing struct {
	*fakeListener
	idle chan struct{}
}

func (l slowlyClosing) Close() error { <-l.idle; return l.fakeListener.Close() }

func TestCloseDoesNotWaitForConnectionsAsAWrapperMay(t *testing.T) {
	l := slowlyClosing{newFake(), make(chan struct{})}
	g := NewWrapped(l, l)
	within(t, "Close", func() {
		if err := g.Close(); err != nil {
			t.Error(err)
		}
	})
	within(t, "others' paths", func() { SetUnlinkOnClose(&net.UnixListener{}, true) })
	close(l.idle)
	within(t, "the socket's end", func() {
		if _, err := l.Accept(); err == nil {
			t.Error("it accepts")
		}
	})
}

func TestAcceptReturnsTheListenersErrors(t *testing.T) {
	l := newFake()
	g := New(l)
	close(l.ended)
	if _, err := g.Accept(); err != errFake {
		t.Errorf("Accept returned %v, want the listener's error", err)
	}
	within(t, "Wait after a failed Accept", func() {
		if err := g.Wait(context.Background()); err != nil {
			t.Error(err)
		}
	})
}

func TestConnectionThatRacesCloseIsCounted(t *testing.T) {
	l := newFake()
	g := New(l)
	theirs, ours := net.Pipe()
	defer theirs.Close()
	got := make(chan accepted)
	go func() {
		c, err := g.Accept()
		got <- accepted{c, err}
	}()
	l.conns <- ours // the listener has accepted
	g.Close()
	a := receive(t, "Accept", got)
	if a.err != nil {
		t.Fatalf("Accept returned %v for a connection that the listener had accepted before Close", a.err)
	}

	waited := make(chan error, 1)
	go func() { waited <- g.Wait(context.Background()) }()
	e := &Entry{Conn: a.conn}
	g.Admit(e)
	select {
	case err := <-waited:
		t.Fatalf("Wait returned %v before the connection was closed", err)
	default:
	}
	g.Remove(e)
	if err := receive(t, "Wait", waited); err != nil {
		t.Error(err)
	}
}

func TestWaitEndsWithTheLastConnection(t *testing.T) {
	g, _ := listen(t)
	entries := []*Entry{{}, {}, {}}
	for _, e := range entries {
		g.Add(e)
	}
	g.Pause()
	var done sync.WaitGroup
	var left atomic.Int32
	left.Store(3)
	for range 4 {
		done.Add(1)
		go func() {
			defer done.Done()
			if err := g.Wait(context.Background()); err != nil {
				t.Error(err)
			}
			if n := left.Load(); n != 0 {
				t.Errorf("Wait returned with %d connections open", n)
			}
		}()
	}
	for _, e := range entries {
		left.Add(-1)
		if !g.Remove(e) {
			t.Error("Remove reports that a connection was not listed")
		}
	}
	within(t, "Wait", done.Wait)
	within(t, "Wait with nothing open", func() { g.Wait(context.Background()) })
}

func TestWaitIsBoundedByItsContext(t *testing.T) {
	g, _ := listen(t)
	e := &Entry{}
	g.Add(e)
	ctx, cancel := context.WithTimeout(context.Background(), time.Millisecond)
	defer cancel()
	if err := g.Wait(ctx); err != context.DeadlineExceeded {
		t.Errorf("Wait returned %v, want context.DeadlineExceeded", err)
	}
	// It has not given the list up.
	waited := make(chan error, 1)
	go func() { waited <- g.Wait(context.Background()) }()
	g.Remove(e)
	if err := receive(t, "the next Wait", waited); err != nil {
		t.Error(err)
	}
}

func TestRemoveTwiceCountsOnce(t *testing.T) {
	g, _ := listen(t)
	a, b := &Entry{}, &Entry{}
	g.Add(a)
	g.Add(b)
	if !g.Remove(a) || g.Remove(a) {
		t.Error("Remove does not report true the first time and false the second")
	}
	if open := g.Count().Open; open != 1 {
		t.Errorf("%d connections are open, want 1", open)
	}
	if g.Remove(&Entry{}) {
		t.Error("Remove reports true for a connection that never was listed")
	}
}

func TestListKeepsTheOrderOfArrival(t *testing.T) {
	g, _ := listen(t)
	var entries []*Entry
	for i := range 5 {
		e := &Entry{Conn: i}
		g.Add(e)
		entries = append(entries, e)
	}
	check := func(want ...*Entry) {
		t.Helper()
		got := g.Entries()
		if len(got) != len(want) {
			t.Fatalf("%d entries, want %d", len(got), len(want))
		}
		for i := range want {
			if got[i] != want[i] {
				t.Fatalf("entry %d is connection %v, want %v", i, got[i].Conn, want[i].Conn)
			}
		}
		count := g.Count()
		open, oldest := count.Open, count.Oldest
		if open != len(want) {
			t.Errorf("%d connections are open, want %d", open, len(want))
		}
		switch {
		case len(want) == 0 && !oldest.IsZero():
			t.Errorf("the oldest of no connections is open since %v", oldest)
		case len(want) > 0 && !oldest.Equal(want[0].since):
			t.Errorf("the oldest is open since %v, want %v", oldest, want[0].since)
		}
	}
	check(entries...)
	g.Remove(entries[2]) // in the middle
	check(entries[0], entries[1], entries[3], entries[4])
	g.Remove(entries[0]) // the oldest
	check(entries[1], entries[3], entries[4])
	g.Remove(entries[4]) // the newest
	check(entries[1], entries[3])
	g.Add(entries[0]) // again
	check(entries[1], entries[3], entries[0])
	g.Remove(entries[1])
	g.Remove(entries[3])
	g.Remove(entries[0])
	check()
}

// countingListener counts what it has accepted, before anybody else knows.
type countingListener struct {
	*net.TCPListener
	accepted atomic.Int32
}

func (l *countingListener) Accept() (net.Conn, error) {
	c, err := l.TCPListener.Accept()
	if err == nil {
		l.accepted.Add(1)
	}
	return c, err
}

func TestNoConnectionIsLostOrUncountedBetweenPauses(t *testing.T) {
	const acceptors, clients, each = 4, 8, 40
	_, tcp := listen(t)
	l := &countingListener{TCPListener: tcp}
	g := New(l)

	var serving, dialing sync.WaitGroup
	for range acceptors {
		serving.Add(1)
		go func() {
			defer serving.Done()
			for {
				c, err := g.Accept()
				if err == net.ErrClosed {
					if g.isClosed() {
						return
					}
					continue // End; Resume follows
				}
				if err != nil {
					t.Errorf("Accept: %v", err)
					return
				}
				g.Admit(&Entry{Conn: c})
				c.Write([]byte("x"))
			}
		}()
	}
	stop := make(chan struct{})
	var controlling sync.WaitGroup
	controlling.Add(1)
	go func() {
		defer controlling.Done()
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			if i%3 == 2 {
				g.End()
			} else {
				g.Pause()
				// No connection leaves the list here.
				if open := g.Count().Open; int32(open) != l.accepted.Load() {
					t.Errorf("after Pause %d connections are listed, of %d accepted", open, l.accepted.Load())
				}
			}
			g.Reopen()
			g.Resume()
			runtime.Gosched()
		}
	}()
	for range clients {
		dialing.Add(1)
		go func() {
			defer dialing.Done()
			for range each {
				c, err := net.Dial("tcp", l.Addr().String())
				if err != nil {
					t.Error(err)
					return
				}
				c.SetReadDeadline(time.Now().Add(patience))
				var b [1]byte
				if _, err := c.Read(b[:]); err != nil {
					t.Errorf("a connection was not served: %v", err)
				}
				c.Close()
			}
		}()
	}
	within(t, "the clients", dialing.Wait)
	close(stop)
	within(t, "the controller", controlling.Wait)
	if open := g.Count().Open; open != clients*each {
		t.Errorf("%d connections are listed, want %d", open, clients*each)
	}

	waited := make(chan error, 1)
	g.Close()
	go func() { waited <- g.Wait(context.Background()) }()
	for _, e := range g.Entries() {
		e.Conn.(net.Conn).Close()
		g.Remove(e)
	}
	if err := receive(t, "Wait", waited); err != nil {
		t.Error(err)
	}
	within(t, "the acceptors", serving.Wait)
}

// isClosed tells End from Close, which look alike to Accept.
func (g *Listener) isClosed() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.closed
}

func TestNothingHangsWhateverIsCalledSideBySide(t *testing.T) {
	t.Parallel()
	for range 8 {
		g, l := listen(t)
		defer g.Close() // ends the acceptors if something hangs
		var acceptors, callers sync.WaitGroup
		for range 3 {
			acceptors.Add(1)
			go func() {
				defer acceptors.Done()
				for {
					c, err := g.Accept()
					switch {
					case err == nil:
						e := &Entry{Conn: c}
						g.Admit(e)
						c.Close()
						g.Remove(e)
					case g.isClosed():
						return
					default: // End; Resume follows
						runtime.Gosched()
					}
				}
			}()
		}
		for range 4 {
			callers.Add(1)
			go func() {
				defer callers.Done()
				for range 200 {
					switch rand.Intn(8) {
					case 0:
						g.Pause()
					case 1:
						g.End()
					case 2:
						if c, err := net.Dial("tcp", l.Addr().String()); err == nil {
							c.Close()
						}
					case 3:
						ctx, cancel := context.WithTimeout(context.Background(), 50*time.Microsecond)
						g.Wait(ctx)
						cancel()
					case 4:
						g.Reopen()
					default:
						g.Resume()
					}
				}
			}()
		}
		within(t, "Pause, Resume, End or Wait", callers.Wait)
		g.CloseLast(true)
		within(t, "Accept after Close", acceptors.Wait)
		within(t, "Wait after Close", func() { g.Wait(context.Background()) })
		if open := g.Count().Open; open != 0 {
			t.Fatalf("%d connections are listed after all were removed", open)
		}
	}
}
