package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"maps"
	"net"
	"strings"
	"sync"
	"time"
)

// rapidInterval is the time between the signals of the kind rapid. Most find a restart under way.
const rapidInterval = 5 * time.Millisecond

// A kind is a way to be a client, and what a restart may cost it.
type kind struct {
	name  string
	about string
	proto string // the server's
	addr  string // the server's: a TCP address to listen on, or "unix"
	rapid bool
	slow  bool // a restart takes about a second, in which clients are told to reconnect
	proxy func(ctx context.Context, t *target, reload bool) (addr string, err error)
	// reload makes the proxy restart, in front of a server on net/http that does not.
	reload bool
	// fresh is how many new connections a restart may cost one client, or all of them if the limit is 0; -1 is any
	// number.
	fresh     int
	newClient func(e *env, number int) client
}

// env is what clients need to reach the server.
type env struct {
	network, addr string
	tls           *tls.Config // nil without TLS
	shakes        *handshakes
}

func (e *env) dial() (net.Conn, error) { return net.DialTimeout(e.network, e.addr, answerTimeout) }

func (e *env) dialTLS() (net.Conn, error) {
	conn, err := e.dial()
	if err != nil {
		return nil, err
	}
	conn.SetDeadline(time.Now().Add(answerTimeout))
	c := tls.Client(conn, e.tls)
	if err := c.Handshake(); err != nil {
		conn.Close()
		return nil, err
	}
	return c, nil
}

// ownSessions returns the environment with a session cache for one client alone.
func (e *env) ownSessions() *env {
	own := *e
	own.tls = e.tls.Clone()
	own.tls.ClientSessionCache = tls.NewLRUClientSessionCache(4)
	return &own
}

func keepAlive(e *env, _ int) client { return &rawClient{dial: e.dial} }

var allKinds = []kind{
	{
		name: "http1", about: "HTTP/1.1, keep-alive",
		proto: "http", addr: "127.0.0.1:0", newClient: keepAlive,
	},
	{
		name: "http1-new", about: "HTTP/1.1, a new connection for each request",
		proto: "http", addr: "127.0.0.1:0", fresh: -1,
		// Half of them close first, which the server notices while it may be moving the connection.
		newClient: func(e *env, number int) client {
			return &rawClient{dial: e.dial, each: true, announce: number%8 < 4}
		},
	},
	{
		name: "tls1", about: "HTTP/1.1 over TLS, keep-alive",
		proto: "tls", addr: "127.0.0.1:0", fresh: 1, slow: true,
		newClient: func(e *env, _ int) client { return &rawClient{dial: e.ownSessions().dialTLS} },
	},
	{
		name: "h2", about: "HTTP/2 over TLS, bodies that can be sent again",
		proto: "tls", addr: "127.0.0.1:0", fresh: 1, slow: true,
		newClient: func(e *env, _ int) client { return newHTTP2Client(e.addr, e.ownSessions().tls) },
	},
	{
		name: "h2c", about: "HTTP/2 with prior knowledge",
		proto: "h2c", addr: "127.0.0.1:0", fresh: 1, slow: true,
		newClient: func(e *env, _ int) client { return newHTTP2Client(e.addr, nil) },
	},
	{
		name: "unix", about: "HTTP/1.1 over a unix socket, keep-alive",
		proto: "http", addr: "unix", newClient: keepAlive,
	},
	{
		name: "chat", about: "lines, over connections that the program moves itself",
		proto: "chat", addr: "127.0.0.1:0",
		newClient: func(e *env, _ int) client { return &chatClient{rawClient: rawClient{dial: e.dial}} },
	},
	{
		name: "nginx", about: "behind nginx, proxy_next_upstream off",
		proto: "http", addr: "127.0.0.1:0", newClient: keepAlive, proxy: startNginx,
	},
	{
		name: "haproxy", about: "behind haproxy, retries 0",
		proto: "http", addr: "127.0.0.1:0", newClient: keepAlive, proxy: startHAProxy,
	},
	{
		name: "rapid", about: fmt.Sprintf("HTTP/1.1, keep-alive, a signal every %v", rapidInterval),
		proto: "http", addr: "127.0.0.1:0", newClient: keepAlive, rapid: true,
	},
}

func kindNames() []string {
	var names []string
	for _, k := range allKinds {
		names = append(names, k.name)
	}
	return names
}

// chooseKinds returns the kinds of a list with commas. All of them is the default; a peer has to be asked for TLS and
// HTTP/2.
func chooseKinds(list string, peer bool) ([]kind, error) {
	if list == "" {
		if !peer {
			return allKinds, nil
		}
		list = "http1,http1-new,nginx,haproxy"
	}
	var chosen []kind
names:
	for name := range strings.SplitSeq(list, ",") {
		for _, k := range allKinds {
			if k.name == name {
				chosen = append(chosen, k)
				continue names
			}
		}
		return nil, fmt.Errorf("unknown kind %q; there are %s", name, strings.Join(kindNames(), ", "))
	}
	return chosen, nil
}

// A row is what was seen of one kind.
type row struct {
	Kind     string
	About    string
	Skipped  string `json:",omitempty"` // why
	Requests int
	Restarts int
	Signals  int
	Lost     int
	LostBy   map[string]int `json:",omitempty"`
	NewConns int            // a proxy's to the server, or all clients' after their first
	Limit    int            // of NewConns; -1 is none
	Resumed  string         `json:",omitempty"` // of new TLS connections

	Before, During, Drain, After summary
	Ratio                        estimate `json:",omitzero"` // of p99, see ratioOf

	FirstAnswer summary // after the signal
	Gone        summary // after the signal
	AfterLast   summary // of the end of the old process, after its last answer

	Failures []string `json:",omitempty"`
	Log      string   `json:",omitempty"` // the end of the server's log, if something failed
}

func (r *row) fail(format string, args ...any) {
	r.Failures = append(r.Failures, fmt.Sprintf(format, args...))
}

// errMissing is a program that is not installed.
var errMissing = errors.New("not installed")

// runKind starts a server and its clients, restarts the one under the others, and adds up what they saw. It calls begun
// when they run. An error means that there was nothing to see.
func runKind(ctx context.Context, cfg config, k kind, begun func(*target)) (*row, error) {
	r := &row{Kind: k.name, About: k.about, Limit: -1}
	t, err := startTarget(ctx, cfg, serverConfig{addr: k.addr, proto: k.proto, listeners: 1, plain: k.reload})
	if err != nil {
		return nil, err
	}
	stop := sync.OnceValue(func() error { return t.stop(ctx) })
	defer stop()

	e, err := newEnv(ctx, k, t)
	if errors.Is(err, errMissing) {
		r.Skipped = err.Error()
		return r, nil
	} else if err != nil {
		return nil, err
	}
	users := make([]*user, cfg.clients)
	for i := range users {
		users[i] = newUser(i, k.newClient(e, i), t)
		defer users[i].client.close()
	}
	if err := meet(users); err != nil {
		return nil, t.withLog(err)
	}
	met := remotesOf(users)
	e.shakes.total.Store(0)
	e.shakes.resumed.Store(0)

	begun(t)
	var restarts []restart
	underLoad(ctx, users, func() {
		sleep(ctx, cfg.steady)
		if k.rapid {
			r.Signals = restartRapidly(ctx, cfg, t, r)
		} else {
			restarts, r.Signals = restartOften(ctx, cfg, t, r)
		}
		sleep(ctx, cfg.steady)
	})
	if ctx.Err() != nil {
		return nil, errors.New("interrupted")
	}

	r.addUsers(users, t.allEpisodes())
	r.addRestarts(restarts)
	r.AfterLast = summarize(t.afterLast())
	if n := e.shakes.total.Load(); n > 0 {
		r.Resumed = fmt.Sprintf("%.0f %%", 100*float64(e.shakes.resumed.Load())/float64(n))
	}
	r.Restarts = t.restarts()
	if t.newest.Load() == nil {
		r.Restarts = r.Signals // it does not say which process answers
	} else if k.rapid && r.Restarts < cfg.rapid {
		r.fail("%d of %d restarts happened", r.Restarts, cfg.rapid)
	}
	if k.proxy != nil && !k.reload {
		r.judgeProxy(users, met)
	} else {
		r.judge(k, users)
	}
	for _, err := range t.errors() {
		r.fail("%s", err)
	}
	tail := t.logTail()
	if err := stop(); err != nil {
		r.fail("%v", err)
	}
	if len(r.Failures) > 0 {
		r.Log = tail
	}
	return r, nil
}

// newEnv tells how to reach the server, behind a proxy if the kind has one.
func newEnv(ctx context.Context, k kind, t *target) (e *env, err error) {
	e = &env{network: t.network(), addr: t.addr, shakes: new(handshakes)}
	if k.proto == "tls" {
		if e.tls, err = clientTLS(t.config.certPath()); err != nil {
			return nil, err
		}
		e.tls.VerifyConnection = e.shakes.count
	}
	if k.proxy != nil {
		e.network = "tcp"
		e.addr, err = k.proxy(ctx, t, k.reload)
	}
	return e, err
}

// underLoad lets the users send requests while it calls f.
func underLoad(ctx context.Context, users []*user, f func()) {
	ctx, end := context.WithCancel(ctx)
	var running sync.WaitGroup
	for _, u := range users {
		running.Add(1)
		go func() {
			defer running.Done()
			u.run(ctx)
		}()
	}
	f()
	end()
	running.Wait()
}

// takes is about how long the row takes.
func (k kind) takes(cfg config) time.Duration {
	each, n := 20*time.Millisecond+cfg.interval, cfg.restarts
	if k.slow {
		each += time.Second
	}
	if k.rapid {
		each, n = 20*time.Millisecond, cfg.rapid
	}
	all := time.Duration(n) * each
	if cfg.budget > 0 {
		all = min(all, cfg.budget)
	}
	return all + 2*cfg.steady + 500*time.Millisecond // for the start and the stop
}

// addUsers adds up what the clients saw.
func (r *row) addUsers(users []*user, episodes []episode) {
	var all []sample
	r.LostBy = make(map[string]int)
	for _, u := range users {
		r.Requests += u.requests
		for what, n := range u.lost {
			r.LostBy[what] += n
			r.Lost += n
		}
		all = append(all, u.samples...)
	}
	if r.Lost > 0 {
		r.fail("%d requests lost", r.Lost)
	}
	p := phasesOf(all, episodes)
	r.Before, r.During, r.Drain, r.After = summarize(p.before), summarize(p.during), summarize(p.drain), summarize(p.after)
	r.Ratio = p.ratio
}

func (r *row) addRestarts(restarts []restart) {
	var firsts, gones []time.Duration
	for _, one := range restarts {
		firsts = append(firsts, one.firstAnswer)
		gones = append(gones, one.gone)
	}
	r.FirstAnswer, r.Gone = summarize(firsts), summarize(gones)
}

// judge counts the clients' new connections and holds them against the kind's limit.
func (r *row) judge(k kind, users []*user) {
	for _, u := range users {
		n := u.client.dials() - 1
		r.NewConns += n
		if k.fresh > 0 && n > k.fresh*r.Restarts {
			r.fail("client %d opened %d new connections in %d restarts", u.number, n, r.Restarts)
		}
	}
	if k.fresh < 0 {
		return
	}
	r.Limit = k.fresh * len(users) * r.Restarts
	if r.NewConns > r.Limit {
		r.fail("%d new connections, at most %d allowed", r.NewConns, r.Limit)
	}
}

// judgeProxy counts the proxy's connections to the server that are not among those of the first requests. None may be.
func (r *row) judgeProxy(users []*user, met map[string]bool) {
	r.Limit = 0
	for remote := range remotesOf(users) {
		if !met[remote] {
			r.NewConns++
		}
	}
	if r.NewConns > 0 {
		r.fail("%d new connections to the server, none allowed", r.NewConns)
	}
}

// remotesOf returns the clients' addresses that the server saw.
func remotesOf(users []*user) map[string]bool {
	all := make(map[string]bool)
	for _, u := range users {
		maps.Copy(all, u.remotes)
	}
	return all
}

// restartOften restarts the server, one restart after the end of the other, until there were enough or time is over.
func restartOften(ctx context.Context, cfg config, t *target, r *row) (restarts []restart, signals int) {
	began := now()
	for signals < cfg.restarts && (cfg.budget == 0 || now()-began < cfg.budget) {
		signals++
		one, err := t.restart(ctx)
		if err != nil {
			if ctx.Err() == nil {
				r.fail("restart %d: %v", signals, err)
			}
			break
		}
		if one.firstAnswer > 0 {
			restarts = append(restarts, one)
		}
		if !sleep(ctx, cfg.interval) {
			break
		}
	}
	return restarts, signals
}

// restartRapidly signals the newest process that has answered, again and again, until there were enough new ones, and
// returns how often. Which signal has caused which restart is not known.
func restartRapidly(ctx context.Context, cfg config, t *target, r *row) (signals int) {
	ctx, cancel := context.WithTimeout(ctx, startTimeout+time.Duration(cfg.rapid)*time.Second)
	defer cancel()
	tick := time.NewTicker(rapidInterval)
	defer tick.Stop()
	for t.restarts() < cfg.rapid {
		t.signalRestart() // an error says that it has just ended: the next signal finds its successor
		signals++
		select {
		case <-tick.C:
		case <-ctx.Done():
			return signals
		}
	}
	if err := t.waitOld(ctx); err != nil {
		r.fail("%v", err)
		return signals
	}
	t.endEpisode()
	return signals
}

// sleep reports false if ctx was done first.
func sleep(ctx context.Context, d time.Duration) bool {
	select {
	case <-time.After(d):
		return true
	case <-ctx.Done():
		return false
	}
}
