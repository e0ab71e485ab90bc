//go:build unix

package handoff

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// noProcess is a process id that no system gives out.
const noProcess = 1 << 30

// playedSuccessor returns a successor whose end of the control socket the test
// plays. No process belongs to it.
func playedSuccessor(g *Generation, c *control) *Successor {
	s := newSuccessor(g, nil)
	s.Pid, s.Started, s.control = noProcess, time.Now(), c
	s.process, _ = os.FindProcess(noProcess)
	return s
}

// play returns a successor that is listened to, and the other end.
func play(t *testing.T) (*Successor, *control) {
	t.Helper()
	ours, theirs := newPair(t)
	g := newGeneration()
	g.SetLogger(quiet)
	s := playedSuccessor(g, ours)
	go s.receive()
	go func() { // the successor's end, when the control socket is closed
		<-s.heard
		close(s.exited)
	}()
	t.Cleanup(func() {
		theirs.close()
		<-s.exited
	})
	return s, theirs
}

func listenTCP(t *testing.T) *net.TCPListener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l.(*net.TCPListener)
}

// pass makes the listener the successor's, at this place.
func (s *Successor) pass(t *testing.T, l syscall.Conn, place int) {
	t.Helper()
	id, err := identify(l)
	if err != nil {
		t.Fatal(err)
	}
	s.passed[id] = place
}

func send(t *testing.T, c *control, k kind, body any, fds ...int) {
	t.Helper()
	if err := c.send(k, body, fds...); err != nil {
		t.Fatal(err)
	}
}

// A signal that was sent after that shall not be taken for one that was sent before.
func TestReadyIsKnownWhenItHasBeenSaid(t *testing.T) {
	ours, theirs := newPair(t)
	defer theirs.close()
	s := playedSuccessor(newGeneration(), ours) // nobody has listened yet
	defer ours.close()
	for _, k := range []kind{0, kindHello, kindWaits} {
		if k != 0 {
			send(t, theirs, k, helloBody{})
		}
		if s.Ready() {
			t.Fatalf("ready after message %d", k)
		}
	}
	send(t, theirs, kindReady, nil)
	if !s.Ready() {
		t.Error("it was not read that the successor is ready")
	}
	theirs.close()
	if !s.Ready() {
		t.Error("what was said counts no more when the other end is closed")
	}
	if (&Successor{g: newGeneration()}).Ready() {
		t.Error("a successor is ready that does not run yet")
	}
}

func TestReadyEndsASocketThatCannotBeRead(t *testing.T) {
	s, peer := play(t)
	if _, err := peer.conn.Write([]byte{255, 255, 255, 255, 0, 0, 0, 0}); err != nil {
		t.Fatal(err)
	}
	if s.Ready() {
		t.Error("ready after what is not a message")
	}
	<-s.heard
}

func TestReadyEndsTheWait(t *testing.T) {
	s, peer := play(t)
	send(t, peer, kindHello, helloBody{Takes: true})
	send(t, peer, kindReady, nil)
	send(t, peer, kindReady, nil) // once more: nothing happens
	within(t, "awaitReady", func() {
		if err := s.awaitReady(patience); err != nil {
			t.Error(err)
		}
	})
	if !s.Moves() {
		t.Error("it has said that it takes connections, and Moves is false")
	}
}

func TestSuccessorThatIsLateLearnsThatNobodyWaits(t *testing.T) {
	s, peer := play(t)
	err := s.awaitReady(time.Millisecond)
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "not ready within 1ms") {
		t.Errorf("error %v, want context.DeadlineExceeded with the timeout", err)
	}
	peer.receiveKind(t, kindGiveUp, nil)
	if err := peer.send(kindReady, nil); !isGone(err) {
		t.Errorf("ready could still be sent: %v", err)
	}
}

func TestReadyThatArrivesWithTheTimeoutCounts(t *testing.T) {
	ours, theirs := newPair(t)
	s := playedSuccessor(newGeneration(), ours)
	send(t, theirs, kindReady, nil) // nobody reads it yet
	outcome := make(chan error, 1)
	go func() { outcome <- s.awaitReady(time.Millisecond) }()
	theirs.receiveKind(t, kindGiveUp, nil)
	go s.receive()
	if err := await(t, "awaitReady", outcome); err != nil {
		t.Errorf("%v, though the successor has been told that it is the one that serves", err)
	}
}

// Whoever of the two is first, both know who serves, and can go on talking.
func TestReadyThatCrossesAGiveUpCounts(t *testing.T) {
	s, peer := play(t)
	send(t, peer, kindHello, helloBody{Takes: true})
	await(t, "hello", s.hello)
	outcome := make(chan error, 1)
	go func() { outcome <- s.awaitReady(time.Millisecond) }()
	peer.receiveKind(t, kindGiveUp, nil)
	send(t, peer, kindReady, nil)
	if err := await(t, "awaitReady", outcome); err != nil {
		t.Fatal(err)
	}
	if !s.Serves() {
		t.Error("it is ready, and Serves is false")
	}
	s.Status("3 left", false)
	peer.receiveKind(t, kindStatus, nil)
	send(t, peer, kindStepDown, nil)
	await(t, "step down", s.StepsDown())
}

// It may read long after its start: whatever does not fit into the socket waits.
func TestSuccessorThatReadsLateHearsAll(t *testing.T) {
	const sockets = 3000
	s, peer := play(t)
	told := make([]*Socket, sockets)
	for i := range told {
		told[i] = &Socket{Kind: Listener, Name: fmt.Sprint(i)}
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.tell(told, nil)
	}()
	time.Sleep(3 * tellTimeout)
	if isClosed(done) {
		t.Fatal("all fits: too few for this test")
	}
	for i := range sockets {
		var b socketBody
		peer.receiveKind(t, kindSocket, &b)
		if b.Name != fmt.Sprint(i) {
			t.Fatalf("after %d sockets it hears of socket %s", i, b.Name)
		}
	}
	peer.receiveKind(t, kindBegin, nil)
	await(t, "the end", done)
}

func TestStepDownIsTakenBack(t *testing.T) {
	s, peer := play(t)
	send(t, peer, kindReady, nil)
	send(t, peer, kindStepDown, nil)
	await(t, "step down", s.StepsDown())
	send(t, peer, kindServeAgain, nil)
	peer.close()
	await(t, "its end", s.heard)
	if s.SteppedDown() {
		t.Error("it has said that it serves again")
	}
}

func TestSigtermBeforeTheForkIsNoWordOfASuccessor(t *testing.T) {
	s := newSuccessor(newGeneration(), nil)
	within(t, "TermMeansReady", func() {
		if s.TermMeansReady() {
			t.Error("SIGTERM is taken for the word of a process that is not there")
		}
	})
	if isClosed(s.ready) {
		t.Error("ready")
	}
}

// catchSIGTERM is a signal loop of the program's own.
func catchSIGTERM(t *testing.T) <-chan os.Signal {
	c := make(chan os.Signal, 1)
	signal.Notify(c, syscall.SIGTERM)
	t.Cleanup(func() { signal.Stop(c) })
	return c
}

// A program may call Restart first, and Wait then.
func TestSuccessorOfARestartBeforeWaitIsHandedToWait(t *testing.T) {
	terms := catchSIGTERM(t)
	s, peer := play(t)
	send(t, peer, kindHello, helloBody{})
	outcome := make(chan error, 1)
	go func() { outcome <- s.HandOver(time.Hour) }()
	await(t, "hello", s.hello)
	for range 1000 {
		runtime.Gosched() // HandOver finds nobody yet
	}
	handed := make(chan *Successor, 1)
	s.g.OnReady(func(s *Successor) { handed <- s })
	send(t, peer, kindReady, nil)
	if err := await(t, "HandOver", outcome); err != nil {
		t.Fatal(err)
	}
	await(t, "the successor", handed)
	if len(terms) > 0 {
		t.Error("the process got SIGTERM as well, which stops it")
	}
}

func TestSuccessorThatWasReadyBeforeWaitIsHandedToWait(t *testing.T) {
	terms := catchSIGTERM(t)
	s, peer := play(t)
	s.g.successor = s
	send(t, peer, kindHello, helloBody{})
	send(t, peer, kindReady, nil)
	within(t, "HandOver", func() {
		if err := s.HandOver(time.Hour); err != nil {
			t.Error(err)
		}
	})
	await(t, "SIGTERM", terms)
	handed := make(chan *Successor, 2)
	s.g.OnReady(func(s *Successor) { handed <- s })
	await(t, "the successor", handed)
	s.g.OnReady(nil)
	s.g.OnReady(func(s *Successor) { handed <- s })
	if len(handed) > 0 {
		t.Error("handed over twice")
	}
}

func TestStoppingGivesTheSuccessorUp(t *testing.T) {
	s, peer := play(t)
	s.g.successor = s
	outcome := make(chan error, 1)
	go func() { outcome <- s.awaitReady(time.Hour) }()
	s.g.Stop(true)
	s.g.Stop(true)
	if err := await(t, "awaitReady", outcome); !errors.Is(err, ErrStopping) {
		t.Errorf("error %v, want %v", err, ErrStopping)
	}
	peer.receiveKind(t, kindGiveUp, nil)
	if _, err := s.g.Start(nil); !errors.Is(err, ErrStopping) {
		t.Errorf("Start of a process that is stopping: %v", err)
	}
}

func TestOnlyOneSuccessorAtATime(t *testing.T) {
	s, _ := play(t)
	s.g.successor = s
	_, err := s.g.Start(nil)
	if !errors.Is(err, ErrUnderWay) || !strings.Contains(err.Error(), fmt.Sprint(noProcess)) {
		t.Errorf("error %v, want ErrUnderWay with the other's pid", err)
	}
	if s.g.Starting() != s {
		t.Error("the successor is forgotten")
	}
}

func TestSuccessorThatEndsIsReported(t *testing.T) {
	s, peer := play(t)
	outcome := make(chan error, 1)
	go func() { outcome <- s.awaitReady(time.Hour) }()
	peer.close()
	if err := await(t, "awaitReady", outcome); err == nil || !strings.Contains(err.Error(), "before it was ready") {
		t.Errorf("error %v", err)
	}
	if !s.Failed() {
		t.Error("it has not failed")
	}
}

func TestSuccessorThatStepsDownHasNotFailed(t *testing.T) {
	s, peer := play(t)
	send(t, peer, kindReady, nil)
	send(t, peer, kindStepDown, nil)
	send(t, peer, kindStepDown, nil)
	await(t, "step down", s.StepsDown())
	if s.Failed() {
		t.Error("it runs, and has failed")
	}
	peer.close()
	await(t, "its end", s.Exited())
	if s.Failed() {
		t.Error("it has said that it ends, and that is taken for a failure")
	}
}

func TestSIGTERMMeansReadyOnlyFromASuccessorThatIsSilent(t *testing.T) {
	t.Run("hello", func(t *testing.T) {
		t.Parallel()
		s, peer := play(t)
		send(t, peer, kindHello, helloBody{})
		await(t, "hello", s.hello)
		if s.TermMeansReady() || isClosed(s.ready) {
			t.Error("a successor that speaks for itself is taken for ready")
		}
	})
	t.Run("ended", func(t *testing.T) {
		t.Parallel()
		s, peer := play(t)
		peer.close()
		await(t, "its end", s.Exited())
		if s.TermMeansReady() || isClosed(s.ready) {
			t.Error("a successor that has ended is taken for ready")
		}
	})
	t.Run("ready", func(t *testing.T) {
		t.Parallel()
		s, peer := play(t)
		send(t, peer, kindReady, nil)
		await(t, "ready", s.ready)
		if s.TermMeansReady() {
			t.Error("a SIGTERM after ready is taken for another ready, not for a request to stop")
		}
	})
	t.Run("silent", func(t *testing.T) {
		t.Parallel()
		s, _ := play(t)
		if !s.TermMeansReady() {
			t.Error("a successor that never says hello cannot become ready")
		}
		if err := s.awaitReady(time.Hour); err != nil {
			t.Error(err)
		}
		if s.Moves() {
			t.Error("it is believed to take connections")
		}
	})
}

func TestSuccessorsWordsAreSkippedIfUnknown(t *testing.T) {
	checkLeaks(t)
	s, peer := play(t)
	_, fds := newFiles(t, 3)
	send(t, peer, 999, map[string]any{"any": "thing"}, fds...)
	send(t, peer, kindHello, map[string]any{"Takes": true, "Later": []int{1}}, fds...)
	send(t, peer, kindTaken, takenBody{}) // an answer nobody waits for
	send(t, peer, 60000, nil)
	send(t, peer, kindReady, nil, fds[0])
	if err := s.awaitReady(patience); err != nil {
		t.Error(err)
	}
	if !s.Moves() {
		t.Error("a hello with more in it was not understood")
	}
}

// Moving.

// newGenerations returns the predecessor's view of the successor, and the
// successor's own, in one process. Both share the listeners, by place.
func newGenerations(t *testing.T, listeners ...*net.TCPListener) (*Successor, *Generation) {
	t.Helper()
	s, peer := play(t)
	g := newGeneration()
	g.SetLogger(quiet)
	g.predecessor, g.gone = peer, make(chan struct{})
	for i, l := range listeners {
		s.pass(t, l, i)
		g.pool.used = append(g.pool.used, &Socket{Kind: Listener, Open: l, index: i})
	}
	send(t, peer, kindHello, helloBody{Takes: true})
	await(t, "hello", s.hello)
	go g.receive()
	t.Cleanup(func() {
		peer.close()
		<-g.gone
	})
	return s, g
}

// connsOf makes connections of files, which it closes. They must be such that
// nobody can block on them, nor inherit them.
func connsOf(t *testing.T, files []*os.File) (conns []net.Conn) {
	t.Helper()
	for _, f := range files {
		withFDs([]syscall.Conn{f}, func(fds []int) error {
			if cloexec, nonblocking := fdFlags(t, fds[0]); !cloexec || !nonblocking {
				t.Errorf("close-on-exec %v, non-blocking %v, want both", cloexec, nonblocking)
			}
			return nil
		})
		c, err := net.FileConn(f)
		if err != nil {
			t.Error(err)
		} else {
			conns = append(conns, c)
		}
		f.Close()
	}
	return conns
}

// checkAlive fails the test if what the client writes does not arrive here.
func checkAlive(t *testing.T, client, here net.Conn) {
	t.Helper()
	want := "from " + client.LocalAddr().String()
	if _, err := io.WriteString(client, want); err != nil {
		t.Error(err)
		return
	}
	here.SetReadDeadline(time.Now().Add(patience))
	got := make([]byte, len(want))
	if _, err := io.ReadFull(here, got); err != nil || string(got) != want {
		t.Errorf("read %q, %v, want %q", got, err, want)
	}
}

func TestSuccessorLearnsHowLongConnectionsHaveWaited(t *testing.T) {
	checkLeaks(t)
	l := listenTCP(t)
	s, g := newGenerations(t, l)
	for _, want := range [][]Waiting{{{First: true, For: 1500}, {For: 20}}, nil} {
		got := make(chan []Waiting, 1)
		g.Accept(l, func(files []*os.File, w []Waiting) {
			for _, f := range files {
				f.Close()
			}
			got <- w
		})
		_, one := tcpPair(t, l)
		_, other := tcpPair(t, l)
		if err := s.Move(l, []syscall.Conn{one, other}, want, patience); err != nil {
			t.Fatal(err)
		}
		if w := <-got; !slices.Equal(w, want) {
			t.Errorf("the successor has got %+v, want %+v", w, want)
		}
	}
}

func TestConnectionsMoveInBatches(t *testing.T) {
	checkLeaks(t)
	listeners := []*net.TCPListener{listenTCP(t), listenTCP(t)}
	s, g := newGenerations(t, listeners...)
	taken := make(chan net.Conn, 1000)
	for place, l := range listeners {
		g.Accept(l, func(files []*os.File, _ []Waiting) {
			for _, c := range connsOf(t, files) {
				if want := listeners[place].Addr().String(); c.LocalAddr().String() != want {
					t.Errorf("a connection to %v has arrived at listener %s", c.LocalAddr(), want)
				}
				taken <- c
			}
		})
	}

	// Several batches at a time, to both listeners, the largest among them.
	var clients []net.Conn
	var moving sync.WaitGroup
	for i, size := range []int{MaxMove, 1, 30, 7, MaxMove, 2} {
		l := listeners[i%2]
		var servers []*net.TCPConn
		var conns []syscall.Conn
		for range size {
			client, server := tcpPair(t, l)
			clients, servers, conns = append(clients, client), append(servers, server), append(conns, server)
		}
		moving.Add(1)
		go func() {
			defer moving.Done()
			if err := s.Move(l, conns, nil, patience); err != nil {
				t.Error(err)
			}
			for _, c := range servers {
				c.Close() // it is the successor's
			}
		}()
	}
	within(t, "Move", moving.Wait)

	arrived := map[string]net.Conn{}
	for range clients {
		c := await(t, "the next connection", taken)
		defer c.Close()
		name := c.RemoteAddr().String() + " to " + c.LocalAddr().String()
		if arrived[name] != nil {
			t.Errorf("the connection from %s has arrived twice", name)
		}
		arrived[name] = c
	}
	for _, client := range clients {
		name := client.LocalAddr().String() + " to " + client.RemoteAddr().String()
		here := arrived[name]
		if here == nil {
			t.Fatalf("the connection from %s has not arrived", name)
		}
		checkAlive(t, client, here)
		here.Close()
	}
}

func TestUnixConnectionsMove(t *testing.T) {
	checkLeaks(t)
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "socket"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	s, g := newGenerations(t)
	s.pass(t, l.(syscall.Conn), 0)
	g.pool.used = []*Socket{{Kind: Listener, Open: l}}
	arrived := make(chan []net.Conn, 1)
	g.Accept(l, func(files []*os.File, _ []Waiting) { arrived <- connsOf(t, files) })
	client, server := pair(t, l)
	if err := s.Move(l.(syscall.Conn), []syscall.Conn{server.(syscall.Conn)}, nil, patience); err != nil {
		t.Fatal(err)
	}
	conns := await(t, "the connection", arrived)
	if _, ok := conns[0].(*net.UnixConn); !ok || len(conns) != 1 {
		t.Fatalf("%d connections, %T", len(conns), conns[0])
	}
	if got, want := conns[0].RemoteAddr().String(), server.RemoteAddr().String(); got != want {
		t.Errorf("RemoteAddr is %q in the successor, %q in the predecessor", got, want)
	}
	server.Close()
	checkAlive(t, client, conns[0])
	conns[0].Close()
}

func TestRefusedConnectionsStay(t *testing.T) {
	l, other := listenTCP(t), listenTCP(t)
	s, g := newGenerations(t, l)
	g.Accept(l, func([]*os.File, []Waiting) { t.Error("taken all the same") })
	g.Accept(l, nil)
	client, server := tcpPair(t, l)
	for range 3 { // each batch gets its own answer
		if err := s.Move(l, []syscall.Conn{server}, nil, patience); err == nil || !strings.Contains(err.Error(), "listener 0") {
			t.Errorf("error %v, want one that names the listener", err)
		}
	}
	if err := s.Move(other, []syscall.Conn{server}, nil, patience); err == nil {
		t.Error("connections of a listener that the successor does not have were moved")
	}
	checkAlive(t, client, server)
}

func TestClosedConnectionIsNamedAndTheOthersStay(t *testing.T) {
	l := listenTCP(t)
	s, g := newGenerations(t, l)
	taken := make(chan []net.Conn, 1)
	g.Accept(l, func(files []*os.File, _ []Waiting) { taken <- connsOf(t, files) })
	client, server := tcpPair(t, l)
	_, closed := tcpPair(t, l)
	closed.Close()
	if err := s.Move(l, []syscall.Conn{server, closed}, nil, patience); !errors.Is(err, net.ErrClosed) {
		t.Errorf("error %v, want net.ErrClosed", err)
	}
	checkAlive(t, client, server)
	if err := s.Move(l, []syscall.Conn{server}, nil, patience); err != nil {
		t.Fatalf("without the closed one: %v", err)
	}
	server.Close()
	here := await(t, "the connection", taken)
	checkAlive(t, client, here[0])
	here[0].Close()
}

func TestConnectionsStayIfTheSuccessorVanishes(t *testing.T) {
	for what, vanish := range map[string]func(*control){
		"without a word": func(peer *control) { peer.close() },
		"after hearing of them": func(peer *control) {
			m, err := peer.receive()
			if err == nil {
				closeAll(m.fds)
			}
			peer.close()
		},
		"in the middle of its answer": func(peer *control) {
			m, err := peer.receive()
			if err == nil {
				b, _ := encode(kindTaken, takenBody{}, 0)
				syscall.Write(m.fds[0], b[:len(b)-1])
				closeAll(m.fds)
			}
			peer.close()
		},
		"with nonsense": func(peer *control) {
			peer.conn.Write([]byte(strings.Repeat("nonsense", 100)))
		},
	} {
		t.Run(what, func(t *testing.T) {
			checkLeaks(t)
			l := listenTCP(t)
			s, peer := play(t)
			s.pass(t, l, 0)
			client, server := tcpPair(t, l)
			gone := make(chan struct{})
			go func() {
				defer close(gone)
				vanish(peer)
			}()
			within(t, "Move", func() {
				if err := s.Move(l, []syscall.Conn{server}, nil, patience); !errors.Is(err, ErrGone) {
					t.Errorf("error %v, want ErrGone", err)
				}
			})
			<-gone
			within(t, "Move once it is gone", func() {
				await(t, "its last word", s.heard)
				if err := s.Move(l, []syscall.Conn{server}, nil, patience); !errors.Is(err, ErrGone) {
					t.Errorf("error %v, want ErrGone", err)
				}
			})
			if s.Moves() {
				t.Error("it is still believed to take connections")
			}
			checkAlive(t, client, server)
		})
	}
}

func TestMoveEndsWhenTheControlSocketBreaks(t *testing.T) {
	l := listenTCP(t)
	_, server := tcpPair(t, l)
	for range 2000 {
		ours, theirs := newPair(t)
		s := playedSuccessor(newGeneration(), ours)
		s.pass(t, l, 0)
		go s.receive()
		go theirs.conn.Write([]byte("nonsense")) // the other end stays open
		moved := make(chan error, 1)
		go func() { moved <- s.Move(l, []syscall.Conn{server}, nil, patience) }()
		select {
		case err := <-moved:
			if !errors.Is(err, ErrGone) {
				t.Fatalf("error %v, want ErrGone", err)
			}
		case <-time.After(patience / 2):
			t.Fatal("Move waits for an answer that cannot come")
		}
		theirs.close()
	}
}

func TestAnswerAfterTheTimeoutDoesNotCount(t *testing.T) {
	t.Parallel()
	l := listenTCP(t)
	s, peer := play(t)
	s.pass(t, l, 0)
	client, server := tcpPair(t, l)
	moved := make(chan error, 1)
	go func() { moved <- s.Move(l, []syscall.Conn{server}, nil, 100*time.Millisecond) }()
	m := peer.receiveKind(t, kindConns, nil)
	select {
	case err := <-moved:
		if err == nil || errors.Is(err, ErrGone) {
			t.Errorf("error %v, want one that says that there was no answer", err)
		}
	case <-time.After(patience):
		t.Fatal("Move waits for an answer forever")
	}
	if _, err := syscall.Write(m.fds[0], []byte{0}); !isGone(err) {
		t.Errorf("the answer could still be given: %v; now both serve the connection", err)
	}
	closeAll(m.fds)
	checkAlive(t, client, server)

	// Whatever else it has to say is heard.
	send(t, peer, kindStepDown, nil)
	await(t, "its stepping down", s.stepsDown)
}

// What the successor is told.

func TestSuccessorGetsListenersFirstAndAsCalledFor(t *testing.T) {
	checkLeaks(t)
	g := newGeneration()
	tcp, wrapped, fresh, closed := listenTCP(t), listenTCP(t), listenTCP(t), listenTCP(t)
	udp, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer udp.Close()
	files, _ := newFiles(t, 1)
	g.Add(&Socket{Kind: File, Name: "log", Open: files[0]})
	g.Add(&Socket{Kind: Packet, Network: "udp", Address: ":0", Open: udp.(*net.UDPConn)})
	g.Add(&Socket{Kind: Listener, Network: "tcp", Address: ":1", Open: fresh})
	g.Add(&Socket{Kind: Listener, Network: "tcp", Address: ":2", Open: closed})
	g.Add(&Socket{Kind: Listener, Network: "tcp", Address: ":3", Open: tcp})
	closed.Close()

	s := playedSuccessor(g, nil)
	s.listeners = []net.Listener{fileOnly{wrapped}, tcp}
	open, told, release, err := s.sockets()
	defer release()
	if err != nil {
		t.Fatal(err)
	}
	want := []*net.TCPListener{wrapped, tcp, fresh}
	if len(open) != len(want) {
		t.Fatalf("%d listening sockets, want %d", len(open), len(want))
	}
	for i, l := range want {
		id, _ := identify(l)
		if got, err := identify(open[i]); err != nil || got != id {
			t.Errorf("place %d is another socket than that of %v (%v)", i, l.Addr(), err)
		}
		if s.passed[id] != i {
			t.Errorf("connections to %v will be sent to place %d, want %d", l.Addr(), s.passed[id], i)
		}
	}
	var got []string
	for _, sock := range told {
		got = append(got, fmt.Sprintf("%s %s%s%s", sock.Kind, sock.Network, sock.Address, sock.Name))
	}
	if w := []string{"listener ", "listener tcp:3", "listener tcp:1", "file log", "packet udp:0"}; !reflect.DeepEqual(got, w) {
		t.Errorf("told %q, want %q", got, w)
	}
}

// fileOnly is a listener with no more than the old interface.
type fileOnly struct{ l *net.TCPListener }

func (f fileOnly) Accept() (net.Conn, error) { return f.l.Accept() }
func (f fileOnly) Close() error              { return f.l.Close() }
func (f fileOnly) Addr() net.Addr            { return f.l.Addr() }
func (f fileOnly) File() (*os.File, error)   { return f.l.File() }

func TestListenerWithoutDescriptorCallsTheRestartOff(t *testing.T) {
	checkLeaks(t)
	closed := listenTCP(t)
	closed.Close()
	for what, l := range map[string]net.Listener{
		"no access":                  struct{ net.Listener }{listenTCP(t)},
		"closed":                     closed,
		"closed, by its File method": fileOnly{closed},
	} {
		s := playedSuccessor(newGeneration(), nil)
		s.listeners = []net.Listener{fileOnly{listenTCP(t)}, l}
		_, _, release, err := s.sockets()
		release()
		if err == nil || !strings.Contains(err.Error(), l.Addr().String()) {
			t.Errorf("%s: error %v, want one that names %v", what, err, l.Addr())
		}
	}
}

// A wrapper may offer SyscallConn for all that it wraps, as grace.NewListener does.
func TestListenerThatHasOnlyFileMayBeWrapped(t *testing.T) {
	s := playedSuccessor(newGeneration(), nil)
	s.listeners = []net.Listener{wrapper{fileOnly{listenTCP(t)}}}
	open, _, release, err := s.sockets()
	defer release()
	if err != nil || len(open) != 1 {
		t.Errorf("%d sockets are passed on: %v", len(open), err)
	}
}

type wrapper struct{ fileOnly }

func (wrapper) SyscallConn() (syscall.RawConn, error) { return nil, errors.ErrUnsupported }

func TestFileThatIsACopyOfAListener(t *testing.T) {
	g := newGeneration()
	a, b := listenTCP(t), listenTCP(t)
	g.Add(&Socket{Kind: Listener, Network: "tcp", Address: "a", Open: a})
	g.Add(&Socket{Kind: Listener, Network: "tcp", Address: "b", Open: b})
	f, err := a.File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	g.Add(&Socket{Kind: File, Name: "copy", Open: f})
	s := playedSuccessor(g, nil)
	_, told, release, err := s.sockets()
	defer release()
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, sock := range told {
		got = append(got, string(sock.Kind)+" "+sock.Address+sock.Name)
	}
	if want := []string{"listener a", "listener b", "file copy"}; !reflect.DeepEqual(got, want) {
		t.Errorf("told %q, want %q", got, want)
	}
}

// told returns what tell says, up to the end.
func told(t *testing.T, sockets []*Socket, providers map[string]func() []byte) (said []string) {
	t.Helper()
	s, peer := play(t)
	go s.tell(sockets, providers)
	for {
		peer.conn.SetReadDeadline(time.Now().Add(patience))
		m, err := peer.receive()
		if err != nil {
			t.Errorf("no end of what the successor must know: %v; heard %q", err, said)
			return said
		}
		closeAll(m.fds)
		switch m.kind {
		case kindBegin:
			return said
		case kindSocket:
			var b socketBody
			m.decode(&b)
			said = append(said, fmt.Sprintf("%s %s%s%s, %d descriptors", b.Kind, b.Network, b.Address, b.Name, len(m.fds)))
		case kindState:
			var b stateBody
			m.decode(&b)
			said = append(said, fmt.Sprintf("state %s: %d bytes", b.Name, len(b.Value)))
		}
	}
}

func TestTellSkipsWhatWasClosed(t *testing.T) {
	checkLeaks(t)
	files, _ := newFiles(t, 2)
	files[0].Close()
	udp, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	udp.Close()
	got := told(t, []*Socket{
		{Kind: Packet, Network: "udp", Address: "closed", Open: udp},
		{Kind: File, Name: "closed", Open: files[0]},
		{Kind: File, Name: "open", Open: files[1]},
	}, map[string]func() []byte{"state": func() []byte { return []byte("abc") }})
	if want := []string{"file open, 1 descriptors", "state state: 3 bytes"}; !reflect.DeepEqual(got, want) {
		t.Errorf("told %q, want %q", got, want)
	}
}

func TestTellSkipsAStateThatIsTooLarge(t *testing.T) {
	files, _ := newFiles(t, 1)
	got := told(t, []*Socket{{Kind: File, Name: "open", Open: files[0]}}, map[string]func() []byte{
		"large": func() []byte { return make([]byte, maxBody) },
		"a":     func() []byte { return []byte("1") },
		"b":     func() []byte { return []byte("2") },
		"none":  func() []byte { return nil },
	})
	for _, want := range []string{"file open, 1 descriptors", "state a: 1 bytes", "state b: 1 bytes", "state none: 0 bytes"} {
		found := false
		for _, g := range got {
			found = found || g == want
		}
		if !found {
			t.Errorf("told %q, without %q", got, want)
		}
	}
}

// Paths.

func TestPathsAreTheSuccessorsWhileItServes(t *testing.T) {
	g := newGeneration()
	pooled, bare := newPathListener(t), newPathListener(t)
	g.Add(&Socket{Kind: Listener, Open: pooled})
	s := playedSuccessor(g, nil)
	s.listeners = []net.Listener{bare}
	if _, _, release, err := s.sockets(); err != nil {
		t.Fatal(err)
	} else {
		release()
	}
	s.keepPaths(true) // from its start on
	if pooled.unlink || bare.unlink {
		t.Errorf("closing removes the path: %v, %v; they are the successor's", pooled.unlink, bare.unlink)
	}
	s.TakeBack()
	if !pooled.unlink || !bare.unlink {
		t.Errorf("closing removes the path: %v, %v; they are ours again", pooled.unlink, bare.unlink)
	}
}

func TestPathsAreOursAgainWhenTheSuccessorFailsToStart(t *testing.T) {
	s, peer := play(t)
	l := newPathListener(t)
	s.g.Add(&Socket{Kind: Listener, Open: l})
	s.keepPaths(true)
	peer.close()
	if err := s.awaitReady(patience); err == nil {
		t.Fatal("it is ready")
	}
	if !l.unlink {
		t.Error("closing leaves the path, and nobody else has it")
	}
}

func TestTakeBackLeavesActivatedPathsAlone(t *testing.T) {
	g := newGeneration()
	g.origin = Succeeded // by one that systemd has activated
	activated := newPathListener(t)
	activated.unlink = false
	g.Add(&Socket{Kind: Listener, Open: activated, Activated: true})
	s := playedSuccessor(g, nil)
	s.listeners = []net.Listener{activated}
	if _, _, release, err := s.sockets(); err != nil {
		t.Fatal(err)
	} else {
		release()
	}
	s.keepPaths(true) // from its start on
	s.TakeBack()
	if activated.unlink {
		t.Error("a path that is systemd's is removed after a successor has failed")
	}
}

// A pathListener shows what SetUnlinkOnClose was told.
type pathListener struct {
	*net.UnixListener
	unlink bool
}

func newPathListener(t *testing.T) *pathListener {
	t.Helper()
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "socket"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return &pathListener{UnixListener: l.(*net.UnixListener), unlink: true}
}

func (l *pathListener) SetUnlinkOnClose(unlink bool) { l.unlink = unlink }
