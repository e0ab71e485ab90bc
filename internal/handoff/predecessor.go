package handoff

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/facebookgo/grace/internal/accept"
)

// stateTimeout bounds the wait for a predecessor's words about the sockets. It
// says them right after starting us.
const stateTimeout = 3 * time.Second

// A Predecessor is the process that started this one, and hands over to it; or that has
// nothing to hand over, and so is gone from the beginning. Its methods may be called from
// several goroutines.
type Predecessor struct {
	Pid int // who has started this process, for one that is gone from the beginning

	g       *Generation
	control *control
	gone    chan struct{} // closed when it has ended, or can say no more
	drained chan struct{} // closed when its drain is over
	stop    chan struct{} // closed when it was told to stop the service
	status  chan Status   // its latest word about its drain, see Statuses
	holds   atomic.Value  // what it holds by that, a string
	states  map[string][]byte

	decided sync.Once // what it hears: that we are ready, or that we know that it has given up
	givenUp bool      // it no longer waits for us; to be read when it is gone

	taking    sync.Mutex // held while a batch is taken; guards what follows
	receivers map[int]func([]*os.File, []Waiting)
	onMove    func(net.Conn, []byte)
	moved     *accept.Listener // where those are listed that onMove does not have yet
}

// newPredecessor returns the one at the other end of a control socket.
func newPredecessor(g *Generation, c *control) *Predecessor {
	return &Predecessor{
		Pid:       cmp.Or(peerPid(c.conn), born.ppid),
		g:         g,
		control:   c,
		gone:      make(chan struct{}),
		drained:   make(chan struct{}),
		stop:      make(chan struct{}),
		status:    make(chan Status, 1),
		states:    map[string][]byte{},
		receivers: map[int]func([]*os.File, []Waiting){},
	}
}

// noPredecessor returns one that is gone: what is sent to it is an error that nobody minds.
func noPredecessor(g *Generation) *Predecessor {
	p := newPredecessor(g, newControl(&net.UnixConn{}))
	p.end()
	return p
}

// Gone is closed once there is no predecessor.
func (p *Predecessor) Gone() <-chan struct{} { return p.gone }

// Drained is closed once no predecessor is left that could still hand connections over:
// its drain is over, though it may stand by.
func (p *Predecessor) Drained() <-chan struct{} { return p.drained }

// Stop is closed when the predecessor, the service manager's main process, was told to
// stop: the service is meant.
func (p *Predecessor) Stop() <-chan struct{} { return p.stop }

// Statuses brings what the predecessor last said of its drain.
func (p *Predecessor) Statuses() <-chan Status { return p.status }

// Holds returns in words what it still holds, as it last said; empty if it did not.
func (p *Predecessor) Holds() string {
	text, _ := p.holds.Load().(string)
	return text
}

// receiveState waits for the predecessor's words about what we inherit.
func (p *Predecessor) receiveState() error {
	p.control.conn.SetReadDeadline(time.Now().Add(stateTimeout))
	defer p.control.conn.SetReadDeadline(time.Time{})
	listeners := 0
	for {
		m, err := p.control.receive()
		if err != nil {
			return err
		}
		switch m.kind {
		case kindSocket:
			var b socketBody
			if err = m.decode(&b); err != nil {
				break
			}
			if b.Kind != Listener {
				if err = p.inherit(b, m); err == nil {
					continue
				}
				break
			}
			if all := p.g.sockets; listeners < len(all) && all[listeners].index == listeners {
				all[listeners].describe(b)
			}
			listeners++
		case kindState:
			var b stateBody
			if err = m.decode(&b); err == nil {
				p.states[b.Name] = b.Value
			}
		}
		closeAll(m.fds) // of no use to us
		if err != nil || m.kind == kindBegin {
			return err
		}
	}
}

// inherit makes sockets of descriptors that do not listen.
func (p *Predecessor) inherit(b socketBody, m *message) error {
	if m.truncated() {
		return fmt.Errorf("%s %s%s was lost on the way: %w", b.Kind, b.Name, b.Address, syscall.EMFILE)
	}
	for _, fd := range m.fds {
		s := &Socket{index: -1}
		s.describe(b)
		if b.Kind == File {
			s.Kind, s.Open = File, os.NewFile(uintptr(fd), b.Name)
		} else {
			s.open(fd)
		}
		p.g.sockets = append(p.g.sockets, s)
	}
	return nil
}

// number is which generation it is: 1 is the first.
func (p *Predecessor) number() int {
	n, _ := strconv.Atoi(string(p.states[numberState]))
	return max(n, 1)
}

// receive takes what the predecessor sends until it ends.
func (p *Predecessor) receive() {
	defer p.end()
	for {
		m, err := p.control.receive()
		if err != nil {
			if !errors.Is(err, io.EOF) && !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, net.ErrClosed) {
				p.g.Logf("grace: control socket of the predecessor: %v; no more connections are taken over", err)
				for _, s := range p.g.all() {
					s.alone.Store(false) // it may be there, and take over again
				}
			}
			p.control.close()
			return
		}
		switch m.kind {
		case kindConns, kindMove:
			p.takeConns(m)
			continue
		case kindStatus:
			var s Status
			if m.decode(&s) == nil {
				if s.Text != "" || !s.Main {
					p.holds.Store(s.Text)
				}
				p.say(s)
			}
		case kindGiveUp:
			p.giveUp()
		case kindStop:
			p.close(p.stop)
		case kindDrained:
			p.close(p.drained)
		}
		closeAll(m.fds)
	}
}

func (p *Predecessor) end() {
	p.close(p.drained)
	close(p.gone)
}

// close closes what may be said twice. Only the goroutine that receives does so.
func (p *Predecessor) close(said chan struct{}) {
	if !isClosed(said) {
		close(said)
	}
}

// say makes a status the latest. Only this goroutine does so.
func (p *Predecessor) say(s Status) {
	select {
	case unread := <-p.status:
		s.Main = s.Main || unread.Main
	default:
	}
	p.status <- s
}

// giveUp lets this process not become ready any more. The end of our words says so to
// the predecessor; if it is too late for that, it hears that we are ready instead.
func (p *Predecessor) giveUp() {
	p.givenUp = true
	p.decided.Do(p.control.shutdown)
}

// ready tells the predecessor that we serve.
func (p *Predecessor) ready(b readyBody) error {
	said := false
	p.decided.Do(func() { said = p.control.send(kindReady, b) == nil })
	if said {
		return nil
	}
	<-p.gone // all that it had to say is read
	if p.givenUp {
		return ErrGivenUp
	}
	p.g.Logf("grace: the predecessor ended before we were ready; serving on")
	return nil
}

// Waiting tells the predecessor that this process runs Wait.
// It is told before this process can be ready.
func (p *Predecessor) Waiting() { p.control.send(kindWaits, nil) }

// StepDown tells a predecessor that still drains not to take over again when
// we end: we are stopping, or have a successor of our own.
func (p *Predecessor) StepDown(stopping bool) {
	p.control.post(kindStepDown, stepDownBody{stopping})
}

// ServeAgain tells a predecessor that StepDown no longer holds: our own successor has
// failed.
func (p *Predecessor) ServeAgain() { p.control.post(kindServeAgain, nil) }

// Flush waits until the predecessor was told all, but no longer than the timeout.
func (p *Predecessor) Flush(timeout time.Duration) { p.control.flush(timeout) }

// receiver lets take have the connections of one of its listeners; nil refuses them.
func (p *Predecessor) receiver(index int, take func([]*os.File, []Waiting)) {
	p.taking.Lock()
	p.receivers[index] = take
	p.taking.Unlock()
}

// OnMove lets take have the connections that the predecessor's program moves. They are
// take's to close, and listed until it returns. A nil take refuses them: once OnMove has
// returned, all that will come are listed.
func (p *Predecessor) OnMove(take func(net.Conn, []byte), list *accept.Listener) {
	p.taking.Lock()
	p.onMove, p.moved = take, list
	p.taking.Unlock()
}

// HasOnMove reports whether somebody has them.
func (p *Predecessor) HasOnMove() bool {
	p.taking.Lock()
	defer p.taking.Unlock()
	return p.onMove != nil
}
