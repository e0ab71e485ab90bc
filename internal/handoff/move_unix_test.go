//go:build unix

package handoff

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/facebookgo/grace/internal/accept"
	"github.com/facebookgo/grace/internal/testserver/driver"
)

// newGenerations returns the predecessor's view of the successor, and the
// successor's own, in one process. Both share the listeners, by place.
func newGenerations(t *testing.T, listeners ...*net.TCPListener) (*Successor, *Generation) {
	t.Helper()
	s, peer := play(t)
	g := newGeneration()
	g.SetLogger(quiet)
	g.Manager, g.Origin = newManager(g, &birth{}), Succeeded
	g.Predecessor = newPredecessor(g, peer)
	for i, l := range listeners {
		s.pass(t, l, i)
		g.sockets = append(g.sockets, &Socket{Kind: Listener, Open: l, index: i, used: true})
	}
	send(t, peer, kindHello, helloBody{Takes: true, Moves: true})
	driver.Eventually(t, "hello", s.movesOwn.Load)
	go g.Predecessor.receive()
	t.Cleanup(func() {
		peer.close()
		<-g.Predecessor.gone
	})
	return s, g
}

// needMove skips the test where connections are not moved.
func needMove(t *testing.T) {
	t.Helper()
	if !canMove {
		t.Skip(errNoMove)
	}
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

func TestConnectionsMoveInBatches(t *testing.T) {
	needMove(t)
	checkLeaks(t)
	listeners := []*net.TCPListener{listenTCP(t), listenTCP(t)}
	s, g := newGenerations(t, listeners...)
	taken := make(chan net.Conn, 1000)
	for place, l := range listeners {
		g.Receive(l, func(files []*os.File, _ []Waiting) {
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
	needMove(t)
	checkLeaks(t)
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "socket"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	s, g := newGenerations(t)
	s.pass(t, l.(syscall.Conn), 0)
	g.sockets = []*Socket{{Kind: Listener, Open: l, used: true}}
	arrived := make(chan []net.Conn, 1)
	g.Receive(l, func(files []*os.File, _ []Waiting) { arrived <- connsOf(t, files) })
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
	needMove(t)
	l, other := listenTCP(t), listenTCP(t)
	s, g := newGenerations(t, l)
	g.Receive(l, func([]*os.File, []Waiting) { t.Error("taken all the same") })
	g.Receive(l, nil)
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
	needMove(t)
	l := listenTCP(t)
	s, g := newGenerations(t, l)
	taken := make(chan []net.Conn, 1)
	g.Receive(l, func(files []*os.File, _ []Waiting) { taken <- connsOf(t, files) })
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
	needMove(t)
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
	driver.NotShort(t)
	needMove(t)
	l := listenTCP(t)
	_, server := tcpPair(t, l)
	for range 2000 {
		ours, theirs := newPair(t)
		s := playedSuccessor(newGeneration(), ours)
		s.pass(t, l, 0)
		s.Release()
		close(s.ended)
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
	needMove(t)
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
	s.expect(t, HandsOver)
}

// What the successor is told.

func TestSuccessorLearnsHowLongAConnectionHasWaited(t *testing.T) {
	needMove(t)
	l := listenTCP(t)
	s, g := newGenerations(t, l)
	arrived := make(chan []Waiting, 1)
	g.Receive(l, func(files []*os.File, waiting []Waiting) {
		for _, c := range connsOf(t, files) {
			c.Close()
		}
		arrived <- waiting
	})
	_, a := tcpPair(t, l)
	_, b := tcpPair(t, l)
	said := []Waiting{{First: true, For: 1500}, {For: 20}}
	for _, test := range []struct{ said, want []Waiting }{
		{said, said},
		{nil, nil},      // an earlier version
		{said[:1], nil}, // of which one?
	} {
		if err := s.Move(l, []syscall.Conn{a, b}, test.said, patience); err != nil {
			t.Fatal(err)
		}
		if got := await(t, "the connections", arrived); !reflect.DeepEqual(got, test.want) {
			t.Errorf("said %+v, and %+v has arrived", test.said, got)
		}
	}
}

// A received is a connection of the program's own.
type received struct {
	conn  net.Conn
	state string
}

func TestConnectionsOfTheProgramsOwnMoveWithWhatItSays(t *testing.T) {
	needMove(t)
	checkLeaks(t)
	l := listenTCP(t)
	s, g := newGenerations(t)
	arrived := make(chan received, MaxMove)
	g.Predecessor.OnMove(func(c net.Conn, state []byte) { arrived <- received{c, string(state)} }, accept.New(nil))
	large := strings.Repeat("x", MaxState)
	for _, states := range [][]string{{"alice", "", "bob"}, {large}, make([]string, MaxMove)} {
		clients := map[string]*net.TCPConn{}
		said := map[string]string{}
		var servers []*net.TCPConn
		var conns []syscall.Conn
		var bodies [][]byte
		for _, state := range states {
			client, server := tcpPair(t, l)
			name := client.LocalAddr().String()
			clients[name], said[name] = client, state
			servers, conns, bodies = append(servers, server), append(conns, server), append(bodies, []byte(state))
		}
		if err := s.MoveOwn(conns, bodies, patience); err != nil {
			t.Fatal(err)
		}
		for _, server := range servers {
			server.Close()
		}
		for range states {
			r := await(t, "the next connection", arrived)
			name := r.conn.RemoteAddr().String()
			if said[name] != r.state {
				t.Errorf("%d bytes have arrived, want %d", len(r.state), len(said[name]))
			}
			checkAlive(t, clients[name], r.conn)
			r.conn.Close()
			clients[name].Close()
			delete(clients, name)
		}
		if len(clients) != 0 {
			t.Errorf("%d connections have not arrived", len(clients))
		}
	}
}

func TestConnectionsOfTheProgramsOwnStayIfNobodyTakesThem(t *testing.T) {
	needMove(t)
	l := listenTCP(t)
	client, server := tcpPair(t, l)
	move := func(s *Successor) error {
		return s.MoveOwn([]syscall.Conn{server}, [][]byte{nil}, patience)
	}
	s, g := newGenerations(t)
	if err := move(s); err == nil || !strings.Contains(err.Error(), "no OnMove") {
		t.Errorf("error %v, want one that names OnMove", err)
	}
	g.Predecessor.OnMove(func(net.Conn, []byte) { t.Error("taken all the same") }, nil)
	if !g.Predecessor.HasOnMove() {
		t.Error("somebody takes them, and HasOnMove is false")
	}
	g.Predecessor.OnMove(nil, nil)
	if err := move(s); err == nil || g.Predecessor.HasOnMove() {
		t.Errorf("error %v from one that takes no more", err)
	}

	pipe, w, err := os.Pipe() // of which net.FileConn makes nothing
	if err != nil {
		t.Fatal(err)
	}
	defer pipe.Close()
	defer w.Close()
	g.Predecessor.OnMove(func(net.Conn, []byte) {}, accept.New(nil))
	if err := s.MoveOwn([]syscall.Conn{pipe}, [][]byte{nil}, patience); !errors.Is(err, syscall.ENOTSOCK) {
		t.Errorf("error %v, want %v", err, syscall.ENOTSOCK)
	}

	earlier, peer := play(t) // does not know the message
	send(t, peer, kindHello, helloBody{Takes: true})
	driver.Eventually(t, "hello", earlier.Moves)
	if err := move(earlier); err == nil || earlier.movesOwn.Load() {
		t.Errorf("error %v from an earlier version", err)
	}
	send(t, peer, kindReady, nil)
	earlier.expect(t, Ready)
	earlier.GiveUp()
	peer.receiveKind(t, kindGiveUp, nil) // and nothing before

	// One whose message is not understood has no answer, and keeps them.
	p, third, _ := played(t)
	receiving(t, p, third)
	answer, theirs, err := controlPair()
	if err != nil {
		t.Fatal(err)
	}
	defer answer.close()
	err = withFDs([]syscall.Conn{server}, func(fds []int) error {
		return third.send(kindMove, moveBody{[][]byte{nil, nil}}, theirs, fds[0]) // two states for one connection
	})
	syscall.Close(theirs)
	if err != nil {
		t.Fatal(err)
	}
	if err := answer.receiveAnswer(); !errors.Is(err, ErrGone) {
		t.Errorf("answer %v to nonsense", err)
	}
	checkAlive(t, client, server)
}

// What a program's own connections wait for at a stop, such as a descriptor, is no reason
// to forget them.
func TestConnectionsOfTheProgramsOwnAreListedBeforeTheyCome(t *testing.T) {
	needMove(t)
	checkLeaks(t)
	client, server := tcpPair(t, listenTCP(t))
	s, g := newGenerations(t)
	list, letCome, done := accept.New(nil), make(chan struct{}), make(chan struct{})
	g.Predecessor.OnMove(func(c net.Conn, _ []byte) {
		<-letCome
		c.Close()
	}, list)
	if err := s.MoveOwn([]syscall.Conn{server}, [][]byte{nil}, patience); err != nil {
		t.Fatal(err)
	}
	server.Close()
	g.Predecessor.OnMove(nil, nil) // as a stop does
	if n := list.Count().Open; n != 1 {
		t.Errorf("%d connections are listed, want the one that was taken", n)
	}
	go func() {
		defer close(done)
		list.Wait(t.Context())
	}()
	close(letCome)
	await(t, "the end of all that has come", done)
	if _, err := client.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("the connection that was taken brings %v, want its end", err)
	}
}

func TestMoveIsRefusedWhereItIsNotSafe(t *testing.T) {
	if canMove {
		t.Skip("it is, here")
	}
	l := listenTCP(t)
	s, _ := newGenerations(t, l)
	_, server := tcpPair(t, l)
	if err := s.Move(l, []syscall.Conn{server}, nil, patience); !errors.Is(err, errors.ErrUnsupported) || s.Moves() {
		t.Errorf("error %v, want errors.ErrUnsupported", err)
	}
}

// offerTo sends a batch, and returns the socket for the answer.
func offerTo(t *testing.T, peer *control, body connsBody, conns []syscall.Conn) (answer *control) {
	t.Helper()
	answer, theirs, err := controlPair()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { answer.close() })
	defer syscall.Close(theirs)
	if err := withFDs(conns, func(fds []int) error {
		return peer.send(kindConns, body, append([]int{theirs}, fds...)...)
	}); err != nil {
		t.Fatal(err)
	}
	return answer
}

func TestBatchesAreAnsweredOneByOne(t *testing.T) {
	checkLeaks(t)
	l := listenTCP(t)
	p, peer, _ := played(t, l)
	receiving(t, p, peer)
	p.g.Take(func(*Socket) bool { return true })
	taken := make(chan []net.Conn, 10)
	p.g.Receive(l, func(files []*os.File, _ []Waiting) { taken <- connsOf(t, files) })

	offer := func(listener, n int, refused string) (clients []*net.TCPConn) {
		t.Helper()
		var conns []syscall.Conn
		for range n {
			client, server := tcpPair(t, l)
			clients, conns = append(clients, client), append(conns, server)
		}
		var b takenBody
		offerTo(t, peer, connsBody{Listener: listener}, conns).receiveKind(t, kindTaken, &b)
		if refused == "" && b.Error != "" || !strings.Contains(b.Error, refused) {
			t.Errorf("answer %+v, want refused: %q", b, refused)
		}
		return clients
	}
	offer(7, 1, "listener 7") // nobody's
	offer(-1, 1, "listener -1")
	clients := offer(0, 3, "")
	for i, c := range await(t, "the connections", taken) {
		checkAlive(t, clients[i], c)
		c.Close()
	}
	offer(0, 0, "")
	if conns := await(t, "no connections", taken); len(conns) != 0 {
		t.Errorf("%d connections of an empty batch", len(conns))
	}
	select {
	case conns := <-taken:
		t.Errorf("%d connections of a batch that was refused", len(conns))
	default:
	}
}

func TestReceiveIsForInheritedListenersOnly(t *testing.T) {
	own, stranger := listenTCP(t), listenTCP(t)
	p, _, _ := played(t)
	p.g.Add(&Socket{Kind: Listener, Open: own})
	p.g.Receive(own, func([]*os.File, []Waiting) {})
	p.g.Receive(stranger, func([]*os.File, []Waiting) {})
	if len(p.receivers) != 0 {
		t.Errorf("%d receivers for listeners that the predecessor does not know", len(p.receivers))
	}
}

// Once Receive has withdrawn a receiver, what was acknowledged has reached it:
// nobody else would serve it.
func TestNothingIsTakenAfterRefusal(t *testing.T) {
	checkLeaks(t)
	l := listenTCP(t)
	_, server := tcpPair(t, l)
	for range 300 {
		p, peer, _ := played(t, l)
		go p.receive()
		p.g.Take(func(*Socket) bool { return true })
		var withdrawn atomic.Bool
		p.g.Receive(l, func(conns []*os.File, _ []Waiting) {
			if withdrawn.Load() {
				t.Error("connections were taken by a receiver that was withdrawn")
			}
			for _, c := range conns {
				c.Close()
			}
		})
		answer := offerTo(t, peer, connsBody{}, []syscall.Conn{server})
		p.g.Receive(l, nil)
		withdrawn.Store(true)
		answer.receiveKind(t, kindTaken, nil)
		peer.close()
		await(t, "the end of receive", p.gone)
		if t.Failed() {
			return
		}
	}
}

func TestFullDescriptorTableRefusesTheBatch(t *testing.T) {
	const batch = 20
	const enough = 1 + batch + sparedFDs // with the socket for the answer; the sender closes its own, which may make room
	for _, free := range []int{0, 1, 2, batch, batch + 1, enough - 2, enough} {
		t.Run(fmt.Sprintf("%d free", free), func(t *testing.T) {
			checkLeaks(t)
			l := listenTCP(t)
			p, peer, _ := played(t, l)
			receiving(t, p, peer)
			p.g.Take(func(*Socket) bool { return true })
			taken := make(chan []*os.File, 1)
			p.g.Receive(l, func(files []*os.File, _ []Waiting) { taken <- files })
			var clients, servers []*net.TCPConn
			var conns []syscall.Conn
			for range batch {
				client, server := tcpPair(t, l)
				clients, servers, conns = append(clients, client), append(servers, server), append(conns, server)
			}

			// The pair is there before: it is the successor's table that is full.
			answer, theirs, err := controlPair()
			if err != nil {
				t.Fatal(err)
			}
			defer answer.close()
			release := fillDescriptors(t, free)
			err = withFDs(conns, func(fds []int) error {
				return peer.send(kindConns, connsBody{}, append([]int{theirs}, fds...)...)
			})
			syscall.Close(theirs)
			if err != nil {
				t.Fatal(err)
			}
			err = answer.receiveAnswer()
			release()
			if free >= enough {
				if err != nil {
					t.Fatalf("refused: %v", err)
				}
			} else {
				switch {
				case err == nil:
					t.Fatal("taken, though there was no room")
				case free == 0 && errors.Is(err, ErrGone): // nor for the socket that an answer needs
				case !strings.Contains(err.Error(), syscall.EMFILE.Error()):
					t.Errorf("refused with %q, want the cause in it", err)
				}
				for i, client := range clients {
					checkAlive(t, client, servers[i])
				}
				// With room again they can move after all.
				if err := offerTo(t, peer, connsBody{}, conns).receiveAnswer(); err != nil {
					t.Fatalf("with room again: %v", err)
				}
			}
			here := connsOf(t, await(t, "the connections", taken))
			if len(here) != batch {
				t.Fatalf("%d connections, want %d", len(here), batch)
			}
			for i, c := range here {
				servers[i].Close()
				checkAlive(t, clients[i], c)
				c.Close()
			}
		})
	}
}

// fillDescriptors opens descriptors until only so many are free, under a limit
// that is lowered meanwhile.
func fillDescriptors(t *testing.T, free int) (release func()) {
	t.Helper()
	var old syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &old); err != nil {
		t.Fatal(err)
	}
	limit := old
	limit.Cur = 400
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	var fds []int
	release = sync.OnceFunc(func() {
		closeAll(fds)
		if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &old); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(release)
	for {
		fd, err := syscall.Dup(0)
		if err == syscall.EMFILE {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		syscall.CloseOnExec(fd)
		fds = append(fds, fd)
	}
	if len(fds) < free {
		t.Fatalf("only %d descriptors were free", len(fds))
	}
	closeAll(fds[len(fds)-free:])
	fds = fds[:len(fds)-free]
	return release
}
