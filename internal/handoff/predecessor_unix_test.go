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
	"reflect"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
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

// String returns what was logged by now.
func (l *lines) String() string {
	FlushLog(patience)
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// played returns a predecessor that the test plays, and its end of the control socket. The
// generation inherits the listeners, by place, and nobody has asked for them yet.
func played(t *testing.T, listeners ...io.Closer) (*Predecessor, *control, *lines) {
	t.Helper()
	peer, ours := newPair(t)
	said := new(lines)
	g := newGeneration()
	g.SetLogger(log.New(said, "", 0))
	g.Origin = Succeeded
	g.Manager = newManager(g, &birth{})
	g.Predecessor = newPredecessor(g, ours)
	for i, l := range listeners {
		g.sockets = append(g.sockets, &Socket{Kind: Listener, Open: l, index: i})
	}
	return g.Predecessor, peer, said
}

// receiving lets the predecessor be heard until the test ends.
func receiving(t *testing.T, p *Predecessor, peer *control) {
	t.Helper()
	go p.receive()
	t.Cleanup(func() {
		peer.close()
		<-p.gone
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
	p, peer, said := played(t, a, b)

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
	if err := p.receiveState(); err != nil {
		t.Fatal(err)
	}

	var got []string
	for _, s := range p.g.sockets {
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
	if s := p.g.State("tickets"); !bytes.Equal(s, []byte{1, 2, 3}) {
		t.Errorf("state %v", s)
	}
	if s := p.g.State("none"); s != nil {
		t.Errorf("a state that was not provided is %v", s)
	}
	packet := p.g.Take(func(s *Socket) bool { return s.Kind == Packet })
	if packet.Addr().String() != udp.LocalAddr().String() {
		t.Errorf("the datagram socket is bound to %v, want %v", packet.Addr(), udp.LocalAddr())
	}
	file := p.g.Take(func(s *Socket) bool { return s.Kind == File }).File()
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
	p, peer, _ := played(t)
	withFDs([]syscall.Conn{l, udp.(syscall.Conn)}, func(fds []int) error {
		for i, name := range []string{"a listening socket", "a datagram socket"} {
			send(t, peer, kindSocket, socketBody{Kind: File, Name: name}, fds[i])
		}
		return nil
	})
	send(t, peer, kindBegin, nil)
	if err := p.receiveState(); err != nil {
		t.Fatal(err)
	}
	for _, s := range p.g.sockets {
		if s.Kind != File || s.File() == nil {
			t.Errorf("the file %q has become a %s", s.Name, s.Kind)
		}
	}
	p.g.Discard()
}

func TestSuccessorThatLosesDescriptorsSaysSo(t *testing.T) {
	checkLeaks(t)
	_, fds := newFiles(t, 1)
	p, peer, _ := played(t)
	whole, err := encode(kindSocket, socketBody{Kind: File, Name: "state"}, 2)
	if err != nil {
		t.Fatal(err)
	}
	// It announces two, and one arrives: the receiver's table is full.
	if _, _, err := peer.conn.WriteMsgUnix(whole, syscall.UnixRights(fds...), nil); err != nil {
		t.Fatal(err)
	}
	send(t, peer, kindBegin, nil)
	if err := p.receiveState(); !errors.Is(err, syscall.EMFILE) {
		t.Errorf("error %v, though a file is missing that the predecessor has handed over", err)
	}
	p.g.Discard()
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
			p, peer, said := played(t, l)
			vanish(peer)
			peer.close()
			within(t, "receiveState", func() {
				if err := p.receiveState(); err == nil {
					t.Error("no error, though the predecessor has not said all")
				}
			})
			go p.receive()
			await(t, "its end", p.Gone())
			within(t, "Ready", func() {
				if err := p.g.Ready(); err != nil {
					t.Errorf("Ready: %v; nobody else serves", err)
				}
			})
			if !strings.Contains(said.String(), "serving on") {
				t.Errorf("logged %q, and not that we serve on", said)
			}
			p.StepDown(false) // nobody hears it
			if got := p.number(); got != 1 {
				t.Errorf("it is generation %d, as far as is known", got)
			}
			await(t, "the end of its drain", p.Drained())
		})
	}
}

func TestReadyIsSaidOnce(t *testing.T) {
	checkLeaks(t)
	asked, unasked := listenTCP(t), listenTCP(t)
	p, peer, _ := played(t, asked, unasked)
	receiving(t, p, peer)
	s := p.g.Take(func(s *Socket) bool { return s.Open == asked })
	if s == nil {
		t.Fatal("not given out")
	}
	within(t, "Ready", func() {
		for range 3 {
			if err := p.g.Ready(); err != nil {
				t.Error(err)
			}
		}
	})
	var b readyBody
	peer.receiveKind(t, kindReady, &b)
	if !reflect.DeepEqual(b.Kept, []int{0}) {
		t.Errorf("it serves on %v, want only what was asked for", b.Kept)
	}
	p.StepDown(false)
	peer.receiveKind(t, kindStepDown, nil) // and not ready again

	if _, err := unasked.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("a socket that nobody has asked for is open: %v", err)
	}
	if !isOpen(asked) {
		t.Error("a socket that was asked for is closed")
	}
	if p.g.Take(func(*Socket) bool { return true }) != nil {
		t.Error("a socket that was closed is given out")
	}
}

func isOpen(c syscall.Conn) bool {
	return withFDs([]syscall.Conn{c}, func([]int) error { return nil }) == nil
}

func TestReadyFailsWhenThePredecessorHasGivenUp(t *testing.T) {
	checkLeaks(t)
	p, peer, _ := played(t)
	receiving(t, p, peer)
	_, fds := newFiles(t, 3)
	send(t, peer, kindGiveUp, nil, fds...)
	if _, err := peer.receive(); !errors.Is(err, io.EOF) {
		t.Errorf("the predecessor hears %v, want the end of all words", err)
	}
	within(t, "Ready", func() {
		for range 2 {
			if err := p.g.Ready(); !errors.Is(err, ErrGivenUp) {
				t.Errorf("Ready: %v, want ErrGivenUp: the predecessor serves on", err)
			}
		}
	})
}

func TestReadyIsNotTakenBackByAGiveUp(t *testing.T) {
	p, peer, _ := played(t)
	receiving(t, p, peer)
	if err := p.g.Ready(); err != nil {
		t.Fatal(err)
	}
	send(t, peer, kindGiveUp, nil) // too late
	send(t, peer, kindStatus, Status{Text: "3 left"})
	await(t, "the status", p.Statuses())
	p.StepDown(false)
	p.ServeAgain()
	for _, k := range []kind{kindReady, kindStepDown, kindServeAgain} {
		peer.receiveKind(t, k, nil)
	}
}

func TestPredecessorsWordsAreSkippedIfUnknown(t *testing.T) {
	checkLeaks(t)
	p, peer, said := played(t)
	receiving(t, p, peer)
	_, fds := newFiles(t, 3)
	send(t, peer, 500, map[string]int{"x": 1}, fds...)
	send(t, peer, kindConns, []string{"not a batch"}, fds...)
	send(t, peer, kindMove, []string{"not a batch"}, fds...)
	send(t, peer, kindHello, helloBody{}, fds...) // not for a successor
	send(t, peer, kindStatus, Status{Text: "3 left", Main: true}, fds...)
	if got := await(t, "the status", p.Statuses()); got != (Status{"3 left", true}) {
		t.Errorf("status %+v", got)
	}
	if s := said.String(); s != "" {
		t.Errorf("logged %q", s)
	}
}

func TestBrokenControlSocketIsSaid(t *testing.T) {
	p, peer, said := played(t)
	go p.receive()
	peer.conn.Write([]byte(strings.Repeat("nonsense", 10)))
	await(t, "its end", p.Gone())
	if s := said.String(); strings.Count(s, "\n") != 1 || !strings.Contains(s, "control socket of the predecessor") {
		t.Errorf("logged %q, want one line", s)
	}
	if err := peer.send(kindStatus, Status{}); !isGone(err) {
		t.Errorf("the predecessor cannot tell that nobody listens: %v", err)
	}
}

func TestOnlyTheLatestStatusIsReceived(t *testing.T) {
	p, peer, _ := played(t)
	receiving(t, p, peer)
	send(t, peer, kindStatus, Status{Text: "3 left", Main: true})
	send(t, peer, kindStatus, Status{Text: "2 left"})
	send(t, peer, kindStatus, Status{Text: "1 left"})
	send(t, peer, kindDrained, nil)
	await(t, "all that it has said", p.Drained()) // nobody has received a status until now
	if got := await(t, "the status", p.Statuses()); got != (Status{"1 left", true}) {
		t.Errorf("%+v, want the latest, and that this is the main process now", got)
	}
}

func TestStopAndTheEndOfTheDrainAreHeard(t *testing.T) {
	p, peer, _ := played(t)
	receiving(t, p, peer)
	if isClosed(p.Stop()) || isClosed(p.Drained()) || isClosed(p.Gone()) {
		t.Error("it was heard before it was said")
	}
	for range 2 { // said twice, it is the same
		send(t, peer, kindStop, nil)
		send(t, peer, kindDrained, nil)
	}
	await(t, "the stop", p.Stop())
	await(t, "the end of the drain", p.Drained())
	if isClosed(p.Gone()) {
		t.Error("a predecessor that stands by is gone")
	}
	peer.close()
	await(t, "its end", p.Gone())
}

func TestPredecessorIsToldOfWaitBeforeReady(t *testing.T) {
	p, peer, _ := played(t)
	receiving(t, p, peer)
	p.Waiting()
	if err := p.g.Ready(); err != nil {
		t.Fatal(err)
	}
	p.StepDown(true)
	p.Flush(patience)
	peer.receiveKind(t, kindWaits, nil)
	peer.receiveKind(t, kindReady, nil)
	var b stepDownBody
	if peer.receiveKind(t, kindStepDown, &b); !b.Stopping {
		t.Error("a stop is told as if there was a successor")
	}
}

func TestPredecessorThatDoesNotReadHoldsUpNobody(t *testing.T) {
	p, _, _ := played(t)
	within(t, "telling it much", func() {
		for range 100_000 {
			p.StepDown(true)
		}
		p.Flush(10 * time.Millisecond)
	})
	p.control.close()
}

func TestNobodyIsToldWithoutAPredecessor(t *testing.T) {
	g := newGeneration()
	g.Manager = newManager(g, &birth{})
	p := g.Predecessor
	await(t, "the end of no predecessor", p.Gone())
	await(t, "the end of its drain", p.Drained())
	for range 2 {
		if err := g.Ready(); err != nil {
			t.Error(err)
		}
	}
	p.Waiting()
	p.StepDown(false)
	p.ServeAgain()
	p.OnMove(func(net.Conn, []byte) {}, nil)
	p.Flush(patience)
	if isClosed(p.Stop()) || len(p.Statuses()) > 0 {
		t.Error("nobody has something to say")
	}
	if g.Origin != Fresh || g.Err != nil || g.Number != 1 || g.State("any") != nil {
		t.Errorf("origin %v, error %v, number %d", g.Origin, g.Err, g.Number)
	}
}

// A process that only looks like a successor of facebookgo/grace, and whose parent is
// another program, signals nobody: the test's parent would tell.
func TestReadyDoesNotSignalAParentOfAnotherProgram(t *testing.T) {
	if parentOf(os.Getppid()).original() {
		t.Skip("the test's parent has the test's command line")
	}
	g := newGeneration()
	g.Manager = newManager(g, &birth{})
	g.Origin, g.Predecessor.Pid = SucceededLegacy, os.Getppid()
	if err := g.Ready(); err != nil {
		t.Error(err)
	}
}

func TestProcessesOfAnotherProgramAreStrangers(t *testing.T) {
	if _, err := os.Readlink("/proc/self/exe"); err != nil {
		t.Skip("program files are not known here")
	}
	if self := parentOf(os.Getpid()); self != (parent{same: true, program: Ours}) {
		t.Errorf("this process's program is %+v", self)
	}
	if !Runs(os.Getpid()) {
		t.Error("this process does not run its program")
	}
	for _, pid := range []int{-1, 0, 1, noProcess} {
		if pid != os.Getpid() && (Runs(pid) || parentOf(pid).same) {
			t.Errorf("pid %d runs our program", pid)
		}
	}
}

// One that cannot be understood may take over again.
func TestNothingIsAloneAfterNonsense(t *testing.T) {
	l := listenTCP(t)
	p, peer, _ := played(t)
	p.g.Add(&Socket{Kind: Listener, Open: l})
	go p.receive()
	if _, err := peer.conn.Write(bytes.Repeat([]byte{0xff}, 100)); err != nil {
		t.Fatal(err)
	}
	await(t, "the end of its words", p.gone)
	if p.g.Alone(l) {
		t.Error("a socket is ours alone though the predecessor may live")
	}
}

// A service manager may have a listening socket, too. Who shuts that down leaves the next
// process without one.
func TestAloneIsWhatIsKnownToBeOurs(t *testing.T) {
	checkLeaks(t)
	m, manager := newManaged(t)
	stored, own, unknown := listenTCP(t), listenTCP(t), listenTCP(t)
	m.g.Add(&Socket{Kind: Listener, Open: stored})
	m.StoreListeners()
	_, fds := manager.next(t)
	closeAll(fds)
	m.g.Add(&Socket{Kind: Listener, Open: own})

	p, peer, _ := played(t, stored, own, unknown) // unknown is of a predecessor that says nothing of it
	go playedSuccessor(m.g, peer).tell(m.g.all(), nil)
	if err := p.receiveState(); err != nil {
		t.Fatal(err)
	}
	p.g.Take(func(s *Socket) bool { return s.Open == own })
	if p.g.Alone(own) {
		t.Error("a socket that the predecessor has is ours alone")
	}
	p.control.close()
	p.end()
	for l, want := range map[net.Listener]bool{stored: false, own: true, unknown: false} {
		p.g.Take(func(s *Socket) bool { return s.Open == l })
		if got := p.g.Alone(l); got != want {
			t.Errorf("alone: %v, want %v", got, want)
		}
	}
}
