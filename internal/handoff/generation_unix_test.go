//go:build unix

package handoff

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
)

// A lines is where a generation's log goes.
type lines struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// played returns a generation whose predecessor the test plays: its end of the
// control socket. It inherits the listeners, by place, and nobody has asked for
// them yet.
func played(t *testing.T, listeners ...io.Closer) (*Generation, *control, *lines) {
	t.Helper()
	peer, ours := newPair(t)
	said := new(lines)
	g := newGeneration()
	g.SetLogger(log.New(said, "", 0))
	g.origin = Succeeded
	g.predecessor, g.gone = ours, make(chan struct{})
	for i, l := range listeners {
		g.pool.unused = append(g.pool.unused, &Socket{Kind: Listener, Open: l, index: i})
	}
	return g, peer, said
}

// receiving lets the generation hear its predecessor until the test ends.
func receiving(t *testing.T, g *Generation, peer *control) {
	t.Helper()
	go g.receive()
	t.Cleanup(func() {
		peer.close()
		<-g.gone
	})
}

func TestSuccessorLearnsWhatItInherits(t *testing.T) {
	checkLeaks(t)
	a, b := listenTCP(t), listenTCP(t)
	udp, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer udp.Close()
	files, fds := newFiles(t, 2)
	g, peer, said := played(t, a, b)

	send(t, peer, kindSocket, socketBody{Kind: Listener, Network: "tcp", Address: "127.0.0.1:0", Name: "web"})
	send(t, peer, 777, "a later version's word", fds...)
	withFDs([]syscall.Conn{udp.(syscall.Conn)}, func(fds []int) error {
		return peer.send(kindSocket, socketBody{Kind: Packet, Network: "udp", Address: ":0"}, fds...)
	})
	send(t, peer, kindSocket, socketBody{Kind: Listener, Network: "tcp4", Address: ":80", Activated: true})
	send(t, peer, kindSocket, socketBody{Kind: File, Name: "log"}, fds[1])
	send(t, peer, kindSocket, socketBody{Kind: Listener, Network: "tcp", Address: "one too many"})
	send(t, peer, kindState, stateBody{"tickets", []byte{1, 2, 3}}, fds[0]) // with a descriptor that nobody expects
	send(t, peer, kindBegin, nil)
	if err := g.receiveState(); err != nil {
		t.Fatal(err)
	}

	var got []string
	for _, s := range g.pool.unused {
		got = append(got, fmt.Sprintf("%s %s %s %q activated=%v place=%d", s.Kind, s.Network, s.Address, s.Name, s.Activated, s.index))
	}
	want := []string{
		`listener tcp 127.0.0.1:0 "web" activated=false place=0`,
		`listener tcp4 :80 "" activated=true place=1`,
		`packet udp :0 "" activated=false place=-1`,
		`file   "log" activated=false place=-1`,
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("inherited\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if s := g.State("tickets"); !bytes.Equal(s, []byte{1, 2, 3}) {
		t.Errorf("state %v", s)
	}
	if s := g.State("none"); s != nil {
		t.Errorf("a state that was not provided is %v", s)
	}
	packet := g.Take(func(s *Socket) bool { return s.Kind == Packet })
	if packet.Addr().String() != udp.LocalAddr().String() {
		t.Errorf("the datagram socket is bound to %v, want %v", packet.Addr(), udp.LocalAddr())
	}
	file := g.Take(func(s *Socket) bool { return s.Kind == File }).File()
	sameFiles(t, []int{int(file.Fd())}, files[1:])
	packet.Open.Close()
	file.Close()
	if s := said.String(); s != "" {
		t.Errorf("logged %q", s)
	}
}

func TestNamedFileStaysAFile(t *testing.T) {
	checkLeaks(t)
	l := listenTCP(t)
	udp, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer udp.Close()
	g, peer, _ := played(t)
	withFDs([]syscall.Conn{l, udp.(syscall.Conn)}, func(fds []int) error {
		for i, name := range []string{"a listening socket", "a datagram socket"} {
			send(t, peer, kindSocket, socketBody{Kind: File, Name: name}, fds[i])
		}
		return nil
	})
	send(t, peer, kindBegin, nil)
	if err := g.receiveState(); err != nil {
		t.Fatal(err)
	}
	for _, s := range g.pool.unused {
		if s.Kind != File || s.File() == nil {
			t.Errorf("the file %q has become a %s", s.Name, s.Kind)
		}
	}
	g.Discard()
}

func TestSuccessorThatLosesDescriptorsSaysSo(t *testing.T) {
	checkLeaks(t)
	_, fds := newFiles(t, 1)
	g, peer, _ := played(t)
	whole, err := encode(kindSocket, socketBody{Kind: File, Name: "state"}, 2)
	if err != nil {
		t.Fatal(err)
	}
	// It announces two, and one arrives: the receiver's table is full.
	if _, _, err := peer.conn.WriteMsgUnix(whole, syscall.UnixRights(fds...), nil); err != nil {
		t.Fatal(err)
	}
	send(t, peer, kindBegin, nil)
	if err := g.receiveState(); err == nil {
		t.Error("no error, though a file is missing that the predecessor has handed over")
	}
	g.Discard()
}

func TestPredecessorThatVanishesLeavesItsSockets(t *testing.T) {
	for what, vanish := range map[string]func(*control){
		"at once":                  func(peer *control) {},
		"in the middle":            func(peer *control) { peer.send(kindSocket, socketBody{Kind: Listener, Network: "tcp", Address: ":80"}) },
		"in half a message":        func(peer *control) { peer.conn.Write([]byte{0, 0, 0, 9, 0, byte(kindState), 0, 0, '{'}) },
		"with nonsense":            func(peer *control) { peer.conn.Write([]byte(strings.Repeat("nonsense", 10))) },
		"with a body that is none": func(peer *control) { peer.send(kindState, []int{1}) },
	} {
		t.Run(what, func(t *testing.T) {
			checkLeaks(t)
			l := listenTCP(t)
			g, peer, said := played(t, l)
			vanish(peer)
			peer.close()
			within(t, "receiveState", func() {
				if err := g.receiveState(); err == nil {
					t.Error("no error, though the predecessor has not said all")
				}
			})
			go g.receive()
			await(t, "its end", g.PredecessorGone())
			within(t, "Ready", func() {
				if err := g.Ready(); err != nil {
					t.Errorf("Ready: %v; nobody else serves", err)
				}
			})
			if !strings.Contains(said.String(), "serving on") {
				t.Errorf("logged %q, and not that we serve on", said)
			}
			g.StepDown(false) // nobody hears it
		})
	}
}

func TestReadyIsSaidOnce(t *testing.T) {
	checkLeaks(t)
	asked, unasked := listenTCP(t), listenTCP(t)
	g, peer, _ := played(t, asked, unasked)
	receiving(t, g, peer)
	s := g.Take(func(s *Socket) bool { return s.Open == asked })
	if s == nil {
		t.Fatal("not given out")
	}
	within(t, "Ready", func() {
		for range 3 {
			if err := g.Ready(); err != nil {
				t.Error(err)
			}
		}
	})
	peer.receiveKind(t, kindReady, nil)
	g.StepDown(false)
	peer.receiveKind(t, kindStepDown, nil) // and not ready again

	if _, err := unasked.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("a socket that nobody has asked for is open: %v", err)
	}
	if !isOpen(asked) {
		t.Error("a socket that was asked for is closed")
	}
	if g.Take(func(*Socket) bool { return true }) != nil {
		t.Error("a socket that was closed is given out")
	}
}

func isOpen(c syscall.Conn) bool {
	return withFDs([]syscall.Conn{c}, func([]int) error { return nil }) == nil
}

func TestReadyFailsWhenThePredecessorHasGivenUp(t *testing.T) {
	checkLeaks(t)
	g, peer, _ := played(t)
	receiving(t, g, peer)
	_, fds := newFiles(t, 3)
	send(t, peer, kindGiveUp, nil, fds...)
	if _, err := peer.receive(); !errors.Is(err, io.EOF) {
		t.Errorf("the predecessor hears %v, want the end of all words", err)
	}
	within(t, "Ready", func() {
		for range 2 {
			if err := g.Ready(); !errors.Is(err, ErrGivenUp) {
				t.Errorf("Ready: %v, want ErrGivenUp: the predecessor serves on", err)
			}
		}
	})
}

func TestReadyIsNotTakenBackByAGiveUp(t *testing.T) {
	g, peer, _ := played(t)
	receiving(t, g, peer)
	if err := g.Ready(); err != nil {
		t.Fatal(err)
	}
	send(t, peer, kindGiveUp, nil) // too late
	heard := make(chan string, 1)
	g.OnStatus(func(text string, main bool) { heard <- text })
	send(t, peer, kindStatus, statusBody{Text: "3 left"})
	await(t, "the status", heard)
	g.StepDown(false)
	g.ServeAgain()
	for _, k := range []kind{kindReady, kindStepDown, kindServeAgain} {
		peer.receiveKind(t, k, nil)
	}
}

func TestPredecessorsWordsAreSkippedIfUnknown(t *testing.T) {
	checkLeaks(t)
	g, peer, said := played(t)
	receiving(t, g, peer)
	_, fds := newFiles(t, 3)
	heard := make(chan string, 1)
	g.OnStatus(func(text string, main bool) { heard <- fmt.Sprint(text, " ", main) })
	send(t, peer, 500, map[string]int{"x": 1}, fds...)
	send(t, peer, kindConns, []string{"not a batch"}, fds...)
	send(t, peer, kindHello, helloBody{}, fds...) // not for a successor
	send(t, peer, kindStatus, statusBody{Text: "3 left", Main: true}, fds...)
	if got := await(t, "the status", heard); got != "3 left true" {
		t.Errorf("status %q", got)
	}
	if s := said.String(); s != "" {
		t.Errorf("logged %q", s)
	}
}

func TestBrokenControlSocketIsSaid(t *testing.T) {
	g, peer, said := played(t)
	go g.receive()
	peer.conn.Write([]byte(strings.Repeat("nonsense", 10)))
	await(t, "its end", g.PredecessorGone())
	if s := said.String(); strings.Count(s, "\n") != 1 || !strings.Contains(s, "control socket of the predecessor") {
		t.Errorf("logged %q, want one line", s)
	}
	if err := peer.send(kindStatus, statusBody{}); !isGone(err) {
		t.Errorf("the predecessor cannot tell that nobody listens: %v", err)
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
	g, peer, _ := played(t, l)
	receiving(t, g, peer)
	g.Take(func(*Socket) bool { return true })
	taken := make(chan []net.Conn, 10)
	g.Accept(l, func(files []*os.File, _ []Waiting) { taken <- connsOf(t, files) })

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

func TestAcceptIsForInheritedListenersOnly(t *testing.T) {
	own, stranger := listenTCP(t), listenTCP(t)
	g, _, _ := played(t)
	g.Add(&Socket{Kind: Listener, Open: own})
	g.Accept(own, func([]*os.File, []Waiting) {})
	g.Accept(stranger, func([]*os.File, []Waiting) {})
	if len(g.receivers) != 0 {
		t.Errorf("%d receivers for listeners that the predecessor does not know", len(g.receivers))
	}
}

// Once Accept has withdrawn a receiver, what was acknowledged has reached it:
// nobody else would serve it.
func TestNothingIsTakenAfterRefusal(t *testing.T) {
	checkLeaks(t)
	l := listenTCP(t)
	_, server := tcpPair(t, l)
	for range 300 {
		g, peer, _ := played(t, l)
		go g.receive()
		g.Take(func(*Socket) bool { return true })
		var withdrawn atomic.Bool
		g.Accept(l, func(conns []*os.File, _ []Waiting) {
			if withdrawn.Load() {
				t.Error("connections were taken by a receiver that was withdrawn")
			}
			for _, c := range conns {
				c.Close()
			}
		})
		answer := offerTo(t, peer, connsBody{}, []syscall.Conn{server})
		g.Accept(l, nil)
		withdrawn.Store(true)
		answer.receiveKind(t, kindTaken, nil)
		peer.close()
		await(t, "the end of receive", g.gone)
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
			g, peer, _ := played(t, l)
			receiving(t, g, peer)
			g.Take(func(*Socket) bool { return true })
			taken := make(chan []*os.File, 1)
			g.Accept(l, func(files []*os.File, _ []Waiting) { taken <- files })
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

func TestSocketsAreRecognized(t *testing.T) {
	checkLeaks(t)
	dir := t.TempDir()
	closers := []io.Closer{}
	defer func() {
		for _, c := range closers {
			c.Close()
		}
	}()
	listen := func(network, address string) syscall.Conn {
		l, err := net.Listen(network, address)
		if err != nil {
			t.Fatal(err)
		}
		closers = append(closers, l)
		return l.(syscall.Conn)
	}
	packet := func(network, address string) syscall.Conn {
		c, err := net.ListenPacket(network, address)
		if err != nil {
			t.Fatal(err)
		}
		closers = append(closers, c)
		return c.(syscall.Conn)
	}
	tcp := listen("tcp", "127.0.0.1:0")
	client, _ := tcpPair(t, tcp.(net.Listener))
	files, _ := newFiles(t, 1)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	null, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	directory, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	closers = append(closers, r, w, null, directory)

	for _, test := range []struct {
		what string
		conn syscall.Conn
		kind Kind
		open any
		says string
	}{
		{"tcp", tcp, Listener, &net.TCPListener{}, "a listening socket"},
		{"unix", listen("unix", filepath.Join(dir, "stream")), Listener, &net.UnixListener{}, "a listening socket"},
		{"unixpacket", listen("unixpacket", filepath.Join(dir, "packet")), Listener, &net.UnixListener{}, "a listening socket"},
		{"udp", packet("udp", "127.0.0.1:0"), Packet, &net.UDPConn{}, "a datagram socket"},
		{"unixgram", packet("unixgram", filepath.Join(dir, "gram")), Packet, &net.UnixConn{}, "a datagram socket"},
		{"a connection", client, File, &os.File{}, "a socket that does not listen"},
		{"a file", files[0], File, &os.File{}, "a file"},
		{"a pipe", r, File, &os.File{}, "a pipe"},
		{"a device", null, File, &os.File{}, "a device"},
		{"a directory", directory, File, &os.File{}, "a directory"},
	} {
		t.Run(test.what, func(t *testing.T) {
			checkLeaks(t)
			var fd int
			if err := withFDs([]syscall.Conn{test.conn}, func(fds []int) (err error) {
				fd, err = syscall.Dup(fds[0])
				return err
			}); err != nil {
				t.Fatal(err)
			}
			syscall.CloseOnExec(fd)
			if test.kind != File { // as a stranger may have left it
				if err := syscall.SetNonblock(fd, false); err != nil {
					t.Fatal(err)
				}
			}
			s := &Socket{}
			s.open(fd)
			defer s.Open.Close()
			if s.Kind != test.kind || reflect.TypeOf(s.Open) != reflect.TypeOf(test.open) {
				t.Errorf("it is a %s, %T, want a %s, %T", s.Kind, s.Open, test.kind, test.open)
			}
			if got := s.Describe(); got != test.says {
				t.Errorf("it is %s, want %s", got, test.says)
			}
			if (s.Listener() != nil) != (test.kind == Listener) || (s.PacketConn() != nil) != (test.kind == Packet) ||
				(s.File() != nil) != (test.kind == File) || (s.Addr() != nil) != (test.kind != File) {
				t.Errorf("listener %v, packet connection %v, file %v, address %v", s.Listener(), s.PacketConn(), s.File(), s.Addr())
			}
			withFDs([]syscall.Conn{s.conn()}, func(fds []int) error {
				cloexec, nonblocking := fdFlags(t, fds[0])
				if !cloexec || test.kind != File && !nonblocking {
					t.Errorf("close-on-exec %v, non-blocking %v", cloexec, nonblocking)
				}
				return nil
			})
		})
	}
}

func TestDescriptorThatIsNotOpenIsDescribed(t *testing.T) {
	s := &Socket{}
	s.open(1 << 20)
	if got := s.Describe(); !strings.Contains(got, syscall.EBADF.Error()) {
		t.Errorf("it is %s, want %v", got, syscall.EBADF)
	}
}

func TestInheritedNumbersAreRemembered(t *testing.T) {
	for index, want := range map[int]int{-1: -1, 0: 3, 41: 44} {
		if got := (&Socket{index: index}).Descriptor(); got != want {
			t.Errorf("place %d is descriptor %d, want %d", index, got, want)
		}
	}
}

func TestNobodyIsToldWithoutAPredecessor(t *testing.T) {
	g := newGeneration()
	await(t, "the end of no predecessor", g.PredecessorGone())
	for range 2 {
		if err := g.Ready(); err != nil {
			t.Error(err)
		}
	}
	g.StepDown(false)
	if g.Origin() != Fresh || g.Err() != nil {
		t.Errorf("origin %v, error %v", g.Origin(), g.Err())
	}
}

// A process that only looks like a successor of the old library, and whose
// parent is another program, signals nobody: the test's parent would tell.
func TestReadyDoesNotSignalAParentOfAnotherProgram(t *testing.T) {
	if sameProgram(os.Getppid()) {
		t.Skip("the test's parent has the test's command line")
	}
	g := newGeneration()
	g.origin, g.ppid = SucceededLegacy, os.Getppid()
	if err := g.Ready(); err != nil {
		t.Error(err)
	}
	if !sameProgram(os.Getpid()) && sameProgramKnown() {
		t.Error("a process is not of its own program")
	}
	if sameProgram(noProcess) || sameProgram(1) && os.Getpid() != 1 {
		t.Error("a stranger is of our program")
	}
}

// sameProgramKnown reports whether command lines can be compared here.
func sameProgramKnown() bool {
	_, err := os.ReadFile("/proc/self/cmdline")
	return err == nil
}
