package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// A version is what the next program does.
type version struct {
	name   string
	weight int
	do     string // what it is told to do at its start, see misbehave; "" is to serve
	file   string // "gone" or "text": what is there in place of the program
}

var versions = []version{
	{name: "good", weight: 10},
	{name: "slow to start", weight: 2, do: "sleep 200ms"},
	{name: "exits with 0", weight: 1, do: "exit 0"},
	{name: "exits with 1", weight: 2, do: "exit 1"},
	{name: "panics", weight: 1, do: "panic"},
	{name: "hangs", weight: 1, do: "hang"},
	{name: "no program", weight: 1, file: "text"},
	{name: "missing", weight: 1, file: "gone"},
}

// An attack is what happens to a process at a random moment of a restart. The old one is the process that was asked
// to restart, the new one the youngest that is there then; it is waited for.
type attack struct {
	name   string
	weight int
	do     func(c *chaos, old, new *generation) error
}

var attacks = []attack{
	{"none", 8, func(*chaos, *generation, *generation) error { return nil }},
	{"new one killed", 4, func(c *chaos, _, new *generation) error { return c.kill(new) }},
	{"old one killed", 3, func(c *chaos, old, _ *generation) error { return c.kill(old) }},
	{"new one stopped", 1, func(c *chaos, _, new *generation) error { return c.stop(new) }},
	{"old one stopped", 1, func(c *chaos, old, _ *generation) error { return c.stop(old) }},
	{"new one frozen", 2, func(c *chaos, _, new *generation) error { return c.pause(new) }},
	{"old one frozen", 2, func(c *chaos, old, _ *generation) error { return c.pause(old) }},
	{"second signal", 2, func(c *chaos, _, new *generation) error { new.process.Signal(c.cfg.signal); return nil }},
}

// chaosStartTimeout is when a new process that hangs is given up.
const chaosStartTimeout = 3 * time.Second

// A chaos is a service that things happen to.
type chaos struct {
	cfg     config
	rnd     *rand.Rand
	dir     string // of the program and what it is told
	server  serverConfig
	target  *target     // replaced when all processes have ended
	ending  *generation // was stopped and has not ended yet
	said    int         // how long the log was when the round began
	overlap bool        // the last restart was not waited for
	ledger  ledger

	rounds, lives int
	counts        map[string]int // of versions and attacks
	history       []string       // the last rounds
	before        string         // the end of the log of the life before
}

// benchChaos restarts a server to good and bad versions, and kills, stops and freezes either side at random moments. A
// lost request must be one that a killed process held, or one that came while nobody served.
func benchChaos(ctx context.Context, cfg config, length time.Duration, seed uint64) (err error) {
	if !procKnown {
		return fmt.Errorf("-chaos looks into /proc: %w", errors.ErrUnsupported)
	}
	if seed == 0 {
		seed = rand.Uint64N(1e9)
	}
	fmt.Printf("chaos: %v, repeat with -seed %d\n", length, seed)
	c := &chaos{cfg: cfg, rnd: rand.New(rand.NewPCG(seed, 0)), counts: make(map[string]int)}
	if c.dir, err = os.MkdirTemp("", "gracebench-chaos"); err != nil {
		return err
	}
	defer os.RemoveAll(c.dir)
	if err := c.prepare(); err != nil {
		return err
	}
	if err := c.begin(ctx); err != nil {
		return err
	}
	defer func() { c.target.stop(context.WithoutCancel(ctx)) }()
	line := newProgress(cfg)
	defer line.close()
	line.follow("chaos", length, func() string {
		return fmt.Sprintf("%d requests, %d lost", c.ledger.requests.Load(), c.ledger.lost.Load())
	})

	load, end := context.WithCancel(ctx)
	defer end()
	var running sync.WaitGroup
	for i := range cfg.clients {
		running.Add(1)
		go func() {
			defer running.Done()
			(&chaosClient{number: i, addr: c.server.addr, ledger: &c.ledger}).run(load)
		}()
	}
	for over := now() + length; now() < over && ctx.Err() == nil; {
		err := c.round(ctx)
		if err == nil {
			err = c.ledger.settle()
		}
		if err != nil && ctx.Err() == nil {
			return fmt.Errorf("seed %d, round %d: %w\nthe log of the life before:\n%s\nthe last rounds:\n%s", seed, c.rounds,
				c.target.withLog(err), c.before, strings.Join(c.history, "\n"))
		}
	}
	end()
	running.Wait()
	line.pause()
	if ctx.Err() != nil {
		return errors.New("interrupted")
	}
	if err := c.ledger.settle(); err != nil {
		return fmt.Errorf("seed %d, at the end: %w", seed, err)
	}
	group := c.target.cmd.Process.Pid
	if err := c.target.stop(ctx); err != nil {
		return fmt.Errorf("seed %d, at the end: %w", seed, err)
	}
	if alive, zombies := processGroup(group); len(alive)+len(zombies) > 0 {
		return fmt.Errorf("seed %d, at the end: processes left: %v, zombies %v", seed, alive, zombies)
	}
	c.report()
	return nil
}

func (c *chaos) report() {
	fmt.Printf("%s requests in %d rounds; the service was started %d times\n", thousands(int(c.ledger.requests.Load())), c.rounds, c.lives)
	for _, name := range slices.Sorted(maps.Keys(c.counts)) {
		fmt.Printf("%8d %s\n", c.counts[name], name)
	}
	fmt.Printf("%s requests lost: %s held by a killed process, %s while nobody served\nnothing unexplained\n",
		thousands(int(c.ledger.lost.Load())), thousands(c.ledger.killed), thousands(c.ledger.down))
}

// prepare makes a copy of this program, which bad versions can replace.
func (c *chaos) prepare() error {
	addr, err := freeAddr()
	if err != nil {
		return err
	}
	c.server = serverConfig{addr: addr, proto: "http", listeners: 1, program: filepath.Join(c.dir, "program"), version: filepath.Join(c.dir, "version")}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	program, err := os.ReadFile(self)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(c.dir, "good"), program, 0o700)
}

// deploy makes v what the next restart starts.
func (c *chaos) deploy(v version) error {
	if err := os.WriteFile(c.server.version, []byte(v.do), 0o600); err != nil {
		return err
	}
	next := filepath.Join(c.dir, "next")
	switch v.file {
	case "gone":
		if err := os.Remove(c.server.program); !errors.Is(err, os.ErrNotExist) {
			return err
		}
		return nil
	case "text":
		if err := os.WriteFile(next, []byte("This is no program.\n"), 0o700); err != nil {
			return err
		}
	default:
		if err := os.Link(filepath.Join(c.dir, "good"), next); err != nil {
			return err
		}
	}
	if err := os.Rename(next, c.server.program); err != nil {
		return err
	}
	os.Remove(next) // renaming a link to the same file does nothing
	return nil
}

// begin starts the service.
func (c *chaos) begin(ctx context.Context) error {
	if err := c.deploy(versions[0]); err != nil {
		return err
	}
	t, err := startTarget(ctx, c.cfg, c.server)
	if err != nil {
		return err
	}
	c.target, c.ending = t, nil
	c.lives++
	c.history = append(c.history, fmt.Sprintf("started as %d", t.order[0].pid))
	return nil
}

// round is one restart and what happens to it.
func (c *chaos) round(ctx context.Context) error {
	c.rounds++
	old, err := c.probe()
	if err != nil {
		return fmt.Errorf("asking who serves: %w", err)
	}
	v := pick(c.rnd, versions, func(v version) int { return v.weight })
	a := pick(c.rnd, attacks, func(a attack) int { return a.weight })
	// Most of a restart happens in its first milliseconds.
	after := time.Duration(c.rnd.ExpFloat64() * float64(25*time.Millisecond))
	good := v.do == "" && v.file == "" && a.name == "none"
	c.counts["version: "+v.name]++
	c.counts["attack: "+a.name]++
	c.history = append(c.history[max(0, len(c.history)-5):], fmt.Sprintf("%d to %q, %s after %v", old.pid, v.name, a.name, after.Round(time.Microsecond)))

	if err := c.deploy(v); err != nil {
		return err
	}
	c.ledger.begin()
	c.said = len(c.target.logText())
	if err := old.process.Signal(c.cfg.signal); errors.Is(err, os.ErrProcessDone) {
		return nil // it has just handed over, in the restart before
	} else if err != nil {
		return fmt.Errorf("signalling process %d: %w", old.pid, err)
	}
	if strings.HasPrefix(a.name, "new") {
		c.awaitNew(ctx, old)
	}
	sleep(ctx, after)
	if err := a.do(c, old, c.youngest()); err != nil {
		return err
	}
	mustGo := old
	if !good || c.overlap { // the signal may have come while another restart was under way
		mustGo = nil
	}
	// Now and then the next one comes at once.
	if c.overlap = a.name == "none" && c.rnd.IntN(8) == 0; c.overlap {
		return nil
	}
	served, err := c.settle(ctx, mustGo)
	if err != nil {
		return err
	}
	switch {
	case served == nil && !c.ledger.ended():
		return errors.New("the service has ended though nobody ended it")
	case served == nil:
		c.before = c.target.logTail()
		c.target.stop(ctx)
		if err := c.begin(ctx); err != nil {
			return err
		}
		c.ledger.serving()
	}
	return nil
}

// youngest returns the process that was started last.
func (c *chaos) youngest() *generation {
	c.target.mu.Lock()
	defer c.target.mu.Unlock()
	return c.target.order[len(c.target.order)-1]
}

// awaitNew waits for a younger process than old, which may never come.
func (c *chaos) awaitNew(ctx context.Context, old *generation) {
	ctx, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
	defer cancel()
	c.target.wait(ctx, "a new process", func() bool { return c.target.order[len(c.target.order)-1].seq > old.seq })
}

// settle waits until one process is left and serves, another than mustGo; or until none is left.
func (c *chaos) settle(ctx context.Context, mustGo *generation) (*generation, error) {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	group := c.target.cmd.Process.Pid
	// One look is not enough: while it goes through the processes, an old one may end that has just begun a new one;
	// and a signal that is on its way has no process yet.
	for none, one := 0, 0; ; {
		alive, zombies := processGroup(group)
		switch {
		case len(alive) == 0:
			if none++; none == 3 {
				return nil, nil
			}
		case len(alive) == 1 && len(zombies) == 0 && (c.ending == nil || c.ending.pid != alive[0]):
			none = 0
			if one++; one < 3 {
				break
			}
			if g, err := c.probe(); err == nil && g.pid == alive[0] && (g != mustGo || c.ignored()) {
				c.ending = nil
				return g, nil
			}
		default:
			none, one = 0, 0
		}
		if !sleep(ctx, 5*time.Millisecond) {
			return nil, fmt.Errorf("after %v there are processes %v and zombies %v", startTimeout, alive, zombies)
		}
	}
}

// ignored reports whether the server has said that another restart was under way: one that has failed, and whose end it
// had not seen yet.
func (c *chaos) ignored() bool {
	return strings.Contains(c.target.logText()[c.said:], "restart signal ignored: a restart is already under way")
}

// probe asks who serves.
func (c *chaos) probe() (*generation, error) {
	pid, err := getOnce(c.server.addr, make([]byte, 1024))
	if err != nil {
		return nil, err
	}
	if g := c.target.generation(pid); g != nil {
		return g, nil
	}
	return nil, fmt.Errorf("answer by process %q", pid)
}

// kill writes down what the process holds and ends it.
func (c *chaos) kill(g *generation) error {
	if err := freeze(g.pid); err != nil {
		return nil // it has just ended
	}
	connections, err := connectionsTo(c.server.addr)
	if err != nil {
		thaw(g.pid)
		return err
	}
	held := heldBy(g.pid, connections)
	for _, other := range c.target.alive() {
		// What its predecessor holds as well was the victim's if the victim had acknowledged it. What its successor
		// holds as well was not: nobody but the victim could have read it before.
		if other.seq > g.seq {
			for addr := range heldBy(other.pid, connections) {
				delete(held, addr)
			}
		}
	}
	c.ledger.kill(held)
	g.process.Kill() // it may have just ended
	return nil
}

func (c *chaos) stop(g *generation) error {
	c.ledger.stop()
	c.ending = g
	g.process.Signal(syscall.SIGTERM) // it may have just ended
	return nil
}

func (c *chaos) pause(g *generation) error {
	if err := freeze(g.pid); err == nil {
		time.Sleep(time.Duration(c.rnd.Int64N(int64(300 * time.Millisecond))))
		thaw(g.pid)
	}
	return nil
}

func pick[T any](rnd *rand.Rand, from []T, weight func(T) int) T {
	all := 0
	for _, v := range from {
		all += weight(v)
	}
	n := rnd.IntN(all)
	for _, v := range from {
		if n -= weight(v); n < 0 {
			return v
		}
	}
	panic("unreachable")
}

// misbehave does what a version is told to do before it serves.
func misbehave(file string) {
	b, err := os.ReadFile(file)
	if err != nil {
		return
	}
	what, argument, _ := strings.Cut(string(b), " ")
	switch what {
	case "exit":
		os.Exit(int(argument[0] - '0'))
	case "panic":
		panic("a bad version")
	case "hang":
		time.Sleep(2 * chaosStartTimeout) // whoever has started it should have killed it by then, or is dead
		os.Exit(1)
	case "sleep":
		d, _ := time.ParseDuration(argument)
		time.Sleep(d)
	}
}

// A ledger has what was lost, and what explains it.
type ledger struct {
	requests, lost atomic.Int64

	mu     sync.Mutex
	losses []loss                   // not explained yet
	kills  map[string]time.Duration // of the process that held the connection from this address
	downs  []down
	ending time.Duration // when this round's first kill or stop was; 0 if there was none

	killed, down int // losses explained by each
}

type loss struct {
	addr         string        // the client's; "" if it could not connect
	opened       time.Duration // the connection
	began, ended time.Duration
	why          string
}

// A down is a time in which nobody served.
type down struct{ from, to time.Duration }

// begin begins a round.
func (l *ledger) begin() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ending = 0
}

func (l *ledger) kill(held map[string]bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	at := now()
	l.ending = cmp.Or(l.ending, at)
	if l.kills == nil {
		l.kills = make(map[string]time.Duration)
	}
	for addr := range held {
		l.kills[addr] = at
	}
}

func (l *ledger) stop() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ending = cmp.Or(l.ending, now())
}

// ended reports whether somebody has ended a process in this round.
func (l *ledger) ended() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.ending > 0
}

// serving ends the time that began with this round's first kill or stop.
func (l *ledger) serving() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.downs = append(l.downs, down{l.ending, now()})
}

func (l *ledger) lose(one loss) {
	l.lost.Add(1)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.losses = append(l.losses, one)
}

// settle explains the losses so far, or returns an error.
func (l *ledger) settle() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	var unexplained []string
	for _, one := range l.losses {
		kill, killed := l.kills[one.addr]
		switch {
		case killed && one.opened < kill && kill <= one.ended:
			l.killed++
		case slices.ContainsFunc(l.downs, func(d down) bool { return d.from <= one.ended && one.began <= d.to }):
			l.down++
		default:
			unexplained = append(unexplained, fmt.Sprintf("%s, on a connection from %s opened %v before, began %v and ended %v ago",
				one.why, cmp.Or(one.addr, "nowhere"), one.began-one.opened, now()-one.began, now()-one.ended))
		}
	}
	l.losses = nil
	if len(unexplained) > 0 {
		return fmt.Errorf("%d requests lost without a reason:\n  %s", len(unexplained), strings.Join(unexplained[:min(5, len(unexplained))], "\n  "))
	}
	return nil
}

// A chaosClient sends requests and reports the lost ones with the connection that they were on.
type chaosClient struct {
	number int
	addr   string
	ledger *ledger
}

func (c *chaosClient) run(ctx context.Context) {
	var addr string
	var opened time.Duration
	e := &env{network: "tcp", addr: c.addr}
	raw := &rawClient{each: c.number%4 == 3}
	raw.dial = e.dial
	defer raw.close()
	rnd := rand.New(rand.NewPCG(uint64(c.number), 2))
	for n := 0; ctx.Err() == nil; n++ {
		raw.idle(time.Duration(rnd.Int64N(int64(20 * time.Millisecond))))
		if raw.conn == nil {
			addr, opened = "", now()
		}
		q := request{body: fmt.Sprintf("client %d request %d\n", c.number, n)}
		switch rnd.IntN(8) {
		case 0:
			q.wait = time.Duration(rnd.IntN(40_000)) * time.Microsecond
		case 1:
			q.cut = 1 + rnd.IntN(60)
		}
		c.ledger.requests.Add(1)
		began := now()
		a, err := raw.do(q)
		if a.local != "" {
			addr = a.local
		}
		if err != nil {
			c.ledger.lose(loss{addr, opened, began, now(), errorKind(err)})
		}
	}
}
