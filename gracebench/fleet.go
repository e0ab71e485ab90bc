package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/facebookgo/grace/gracedemo/deploy/fleet"
)

const (
	fleetRestarts = 3                     // of each instance
	fleetAway     = time.Second           // from an instance's end to the start of the one that replaces it
	fleetLate     = time.Second           // of the forwarder
	fleetDelay    = 10 * time.Millisecond // of the forwarder
)

// fleetLameDuck is how long an instance of the deployment says that it stops, and serves.
func fleetLameDuck() (time.Duration, error) {
	m := regexp.MustCompile(`(?m)^ExecStart=.* -lame-duck (\S+)`).FindStringSubmatch(fleet.Unit)
	if m == nil {
		return 0, errors.New("the unit of the fleet has no -lame-duck")
	}
	return time.ParseDuration(m[1])
}

// A run of a fleet is instances of the server, balancers in front of all of them, and their clients.
type fleetRun struct {
	cfg       config
	dir       string
	log       *os.File
	instances []*target
	balancers []*balancer
	lost      atomic.Int64
}

// A balancer is told which processes have answered its clients.
type balancer struct {
	name    string
	skipped error
	fronts  []front
	stop    func()

	run     *fleetRun
	mu      sync.Mutex
	met     map[string]bool // pids
	changed chan struct{}   // closed and replaced whenever there is one more
}

// A front is an address of a balancer, for clients of a kind.
type front struct {
	kind kind
	env  *env
}

func (b *balancer) answered(pid string, _ time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.met[pid] {
		b.met[pid] = true
		close(b.changed)
		b.changed = make(chan struct{})
	}
}

func (b *balancer) missed() { b.run.lost.Add(1) }

// meet waits until the process has answered a client.
func (b *balancer) meet(ctx context.Context, pid string) error {
	for {
		b.mu.Lock()
		ok, changed := b.met[pid], b.changed
		b.mu.Unlock()
		if ok {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("waiting for an answer of process %s behind %s: %w", pid, b.name, ctx.Err())
		}
	}
}

// startFleet starts the instances, and all balancers that are installed.
func startFleet(ctx context.Context, cfg config, instances int, lameDuck time.Duration) (f *fleetRun, err error) {
	f = &fleetRun{cfg: cfg}
	defer func() {
		if err != nil {
			f.stop(ctx)
		}
	}()
	if f.dir, err = os.MkdirTemp("", "gracebench"); err != nil {
		return f, err
	}
	if f.log, err = os.OpenFile(filepath.Join(f.dir, "log"), os.O_CREATE|os.O_RDWR|os.O_APPEND, 0o600); err != nil {
		return f, err
	}
	var addrs []string
	for range instances {
		addr, err := lastingAddr()
		if err != nil {
			return f, err
		}
		t, err := startTarget(ctx, cfg, serverConfig{addr: addr, proto: "http", listeners: 1, lameDuck: lameDuck})
		if err != nil {
			return f, err
		}
		f.instances, addrs = append(f.instances, t), append(addrs, addr)
	}
	for _, b := range []struct {
		name  string
		start func(context.Context, *balancer, []string) error
	}{
		{"haproxy", f.startHAProxy},
		{"nginx", f.startNginx},
		{"layer 4", f.startForwarder},
	} {
		one := &balancer{name: b.name, run: f, met: make(map[string]bool), changed: make(chan struct{})}
		if err := b.start(ctx, one, addrs); errors.Is(err, errMissing) {
			one.skipped = err
		} else if err != nil {
			return f, err
		}
		f.balancers = append(f.balancers, one)
	}
	return f, nil
}

// startHAProxy starts haproxy as it is deployed, but that it may not try again.
func (f *fleetRun) startHAProxy(ctx context.Context, b *balancer, addrs []string) error {
	return f.startProxy(ctx, b, func(clear, secure, cert, key string) (string, error) {
		both := filepath.Join(f.dir, "both.pem")
		if err := concatenate(both, cert, key); err != nil {
			return "", err
		}
		conf, err := withServers(fleet.HAProxy, addrs)
		return strings.NewReplacer(
			"defaults\n", "global\n\tnbthread 1\ndefaults\n\tretries 0\n",
			"bind :8080", "bind "+clear+"\n\tbind "+secure+" ssl crt "+both+" alpn h2,http/1.1",
		).Replace(conf), err
	}, "-db", "-f")
}

// startNginx starts nginx as it is deployed.
func (f *fleetRun) startNginx(ctx context.Context, b *balancer, addrs []string) error {
	return f.startProxy(ctx, b, func(clear, secure, cert, key string) (string, error) {
		conf, err := withServers(fleet.Nginx, addrs)
		conf = strings.Replace(conf, "listen 8081;", "listen "+clear+";\n\tlisten "+secure+" ssl http2;\n\tssl_certificate "+
			cert+";\n\tssl_certificate_key "+key+";", 1)
		return strings.ReplaceAll(nginxConf("off", conf), "{dir}", f.dir), err
	}, "-p", f.dir, "-e", "stderr", "-c")
}

// startProxy starts the program with its fronts: HTTP/1.1, and over TLS HTTP/1.1 and HTTP/2.
func (f *fleetRun) startProxy(ctx context.Context, b *balancer, conf func(clear, secure, cert, key string) (string, error), args ...string) error {
	kinds, err := chooseKinds("http1,tls1,h2", true)
	if err != nil {
		return err
	}
	cert, key := filepath.Join(f.dir, "cert.pem"), filepath.Join(f.dir, "key.pem")
	if err := writeCertificate(cert, key); err != nil {
		return err
	}
	config, err := clientTLS(cert)
	if err != nil {
		return err
	}
	var addrs [2]string
	for i := range addrs {
		if addrs[i], err = lastingAddr(); err != nil {
			return err
		}
	}
	text, err := conf(addrs[0], addrs[1], cert, key)
	if err != nil {
		return err
	}
	p, err := runProxy(ctx, f.dir, f.log, text, addrs[0], b.name, args...)
	if err != nil {
		return f.withLog(err)
	}
	b.stop = p.stop
	secure := &env{network: "tcp", addr: addrs[1], tls: config}
	b.fronts = []front{{kinds[0], &env{network: "tcp", addr: addrs[0]}}, {kinds[1], secure}, {kinds[2], secure}}
	return nil
}

func (f *fleetRun) startForwarder(ctx context.Context, b *balancer, addrs []string) error {
	kinds, err := chooseKinds("http1,http1-new", true)
	if err != nil {
		return err
	}
	forwarder := &forwarder{endpoints: addrs, late: fleetLate, delay: fleetDelay}
	addr, err := forwarder.start(ctx)
	if err != nil {
		return err
	}
	b.stop = forwarder.close
	for _, k := range kinds {
		b.fronts = append(b.fronts, front{k, &env{network: "tcp", addr: addr}})
	}
	return nil
}

var serverLine = regexp.MustCompile(`(?m)^\tserver .*\b127\.0\.0\.1:4800\d.*\n`)

// withServers is a configuration of the deployment with other servers.
func withServers(conf string, addrs []string) (string, error) {
	lines := serverLine.FindAllStringIndex(conf, -1)
	if lines == nil {
		return "", errors.New("a configuration of the fleet names no server")
	}
	first, last := lines[0], lines[len(lines)-1]
	var servers strings.Builder
	for i, addr := range addrs {
		servers.WriteString(strings.NewReplacer("demo1", fmt.Sprint("demo", i+1), "127.0.0.1:48001", addr).Replace(conf[first[0]:first[1]]))
	}
	return conf[:first[0]] + servers.String() + conf[last[1]:], nil
}

func concatenate(into string, files ...string) error {
	var all []byte
	for _, name := range files {
		b, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		all = append(all, b...)
	}
	return os.WriteFile(into, all, 0o600)
}

// lastingAddr returns a free loopback address whose port no connection gets by itself: one that has to be free again
// later.
func lastingAddr() (addr string, err error) {
	for range 100 {
		var l net.Listener
		if l, err = net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", 20_000+rand.IntN(10_000))); err == nil {
			return l.Addr().String(), l.Close()
		}
	}
	return "", err
}

// roll does something with each instance, one after the other, under the load of new clients at all fronts, and returns
// what each front has seen.
func (f *fleetRun) roll(ctx context.Context, step func(context.Context, int) error) (map[string]*row, error) {
	users := make(map[string][]*user)
	var all []*user
	for _, b := range f.balancers {
		for _, front := range b.fronts {
			name := b.name + " " + front.kind.name
			for range max(1, f.cfg.clients/4) {
				u := newUser(len(all), front.kind.newClient(front.env, len(all)), b)
				u.pauses = max(u.pauses, 10*time.Millisecond) // two processors are to bear them all
				defer u.client.close()
				users[name], all = append(users[name], u), append(all, u)
			}
		}
	}
	if err := meet(all); err != nil {
		return nil, f.withLog(err)
	}
	var err error
	underLoad(ctx, all, func() {
		sleep(ctx, f.cfg.steady)
		for i := range f.instances {
			if err = step(ctx, i); err != nil {
				err = fmt.Errorf("instance %d of %d: %w", i+1, len(f.instances), err)
				return
			}
		}
		sleep(ctx, f.cfg.steady)
	})
	if ctx.Err() != nil {
		return nil, errors.New("interrupted")
	} else if err != nil {
		return nil, err
	}
	rows := make(map[string]*row)
	for name, users := range users {
		rows[name] = &row{Kind: name}
		rows[name].addUsers(users, nil)
	}
	return rows, nil
}

func (f *fleetRun) restarts(ctx context.Context, i int) error {
	for range fleetRestarts {
		if err := f.restart(ctx, i); err != nil {
			return err
		}
	}
	return nil
}

// restart makes an instance restart, and waits until the old process has ended and the new one has answered through
// each balancer.
func (f *fleetRun) restart(ctx context.Context, i int) error {
	t := f.instances[i]
	old, _, err := t.signalRestart()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, drainTimeout)
	defer cancel()
	var new *generation
	err = t.wait(ctx, "a new process to accept", func() bool {
		new = t.order[len(t.order)-1]
		return new != old && len(new.addrs) > 0
	})
	if err == nil {
		err = f.meet(ctx, new)
	}
	if err == nil {
		t.answered(strconv.Itoa(new.pid), now())
		err = t.waitGone(ctx, old)
	}
	if err != nil {
		return t.withLog(err)
	}
	return nil
}

// replace stops an instance, and starts another at its address.
func (f *fleetRun) replace(ctx context.Context, i int) error {
	t := f.instances[i]
	tail := t.logTail()
	err := stopInstance(ctx, t)
	if err != nil {
		return fmt.Errorf("%w; the end of its log before:\n%s", err, tail)
	}
	sleep(ctx, fleetAway)
	if t, err = startTarget(ctx, f.cfg, t.config); err != nil {
		return err
	}
	f.instances[i] = t
	return f.meet(ctx, t.order[0])
}

func (f *fleetRun) meet(ctx context.Context, g *generation) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	for _, b := range f.balancers {
		if b.skipped == nil {
			if err := b.meet(ctx, strconv.Itoa(g.pid)); err != nil {
				return err
			}
		}
	}
	return nil
}

func (f *fleetRun) withLog(err error) error {
	if log, readErr := os.ReadFile(f.log.Name()); readErr == nil && len(log) > 0 {
		return fmt.Errorf("%w; the balancers' log:\n%s", err, log[max(0, len(log)-2000):])
	}
	return err
}

// stop ends the balancers first, so that no instance waits for their connections, and then all instances together.
func (f *fleetRun) stop(ctx context.Context) error {
	for _, b := range f.balancers {
		if b.stop != nil {
			b.stop()
		}
	}
	errs := make([]error, len(f.instances))
	var wg sync.WaitGroup
	for i, t := range f.instances {
		wg.Add(1)
		go func() {
			defer wg.Done()
			errs[i] = stopInstance(ctx, t)
		}()
	}
	wg.Wait()
	if f.log != nil {
		f.log.Close()
	}
	os.RemoveAll(f.dir)
	return errors.Join(errs...)
}

// stopInstance also returns what its processes have said went wrong.
func stopInstance(ctx context.Context, t *target) error {
	err := t.stop(ctx)
	if said := t.errors(); said != nil {
		err = errors.Join(err, errors.New(strings.Join(said, "; ")))
	}
	return err
}

// A fleetRow is what one front has seen.
type fleetRow struct {
	Balancer, Clients string
	Skipped           string `json:",omitempty"` // why
	Restarted         *row   `json:",omitempty"` // each instance in turn
	Replaced          *row   `json:",omitempty"` // stopped, with a lame duck, and started again
	Control           *row   `json:",omitempty"` // the same without a lame duck, which has to lose
}

const fleetFormat = "%-9s %-10s %10v %7v   %10v %7v   %10v %7v\n"

// benchFleet restarts and replaces the instances of a fleet, one after the other.
func benchFleet(ctx context.Context, cfg config) error {
	instances := 8
	if cfg.short {
		instances = 2
	}
	rows, err := runFleet(ctx, cfg, instances)
	if err != nil {
		return err
	}
	if cfg.json {
		if err := writeJSON(rows); err != nil {
			return err
		}
	} else if _, err := fmt.Print(fleetText(instances, rows)); err != nil {
		return err
	}
	return judgeFleet(rows)
}

func runFleet(ctx context.Context, cfg config, instances int) (rows []fleetRow, err error) {
	lameDuck, err := fleetLameDuck()
	if err != nil {
		return nil, err
	}
	line := newProgress(cfg)
	defer line.close()
	type step func(*fleetRun, context.Context, int) error
	var phases []map[string]*row
	for _, run := range []struct {
		lameDuck time.Duration
		steps    []step
	}{
		{lameDuck, []step{(*fleetRun).restarts, (*fleetRun).replace}},
		{0, []step{(*fleetRun).replace}},
	} {
		f, err := startFleet(ctx, cfg, instances, run.lameDuck)
		if err != nil {
			return nil, err
		}
		for i, step := range run.steps {
			left := time.Duration(3-len(phases)) * time.Duration(instances) * 4 * time.Second
			line.follow(fmt.Sprintf("fleet, %d of 3", len(phases)+1), left, func() string {
				return fmt.Sprintf("%d lost", f.lost.Load())
			})
			seen, err := f.roll(ctx, func(ctx context.Context, i int) error { return step(f, ctx, i) })
			if err != nil {
				f.stop(ctx)
				return nil, fmt.Errorf("step %d with a lame duck of %v: %w", i+1, run.lameDuck, err)
			}
			phases = append(phases, seen)
		}
		line.pause()
		if err := f.stop(ctx); err != nil {
			return nil, err
		}
		if rows != nil {
			continue
		}
		for _, b := range f.balancers {
			if b.skipped != nil {
				rows = append(rows, fleetRow{Balancer: b.name, Skipped: b.skipped.Error()})
			}
			for _, front := range b.fronts {
				rows = append(rows, fleetRow{Balancer: b.name, Clients: front.kind.name})
			}
		}
	}
	for i := range rows {
		r := &rows[i]
		name := r.Balancer + " " + r.Clients
		r.Restarted, r.Replaced, r.Control = phases[0][name], phases[1][name], phases[2][name]
	}
	return rows, nil
}

func fleetText(instances int, rows []fleetRow) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d instances, clients that never retry; %s/%s, %d processors. More: go doc ./gracebench\n\n",
		instances, runtime.GOOS, runtime.GOARCH, runtime.NumCPU())
	fmt.Fprintf(&b, "%-20s %18s   %18s   %18s\n", "", "each restarted", "each replaced", "without lame duck")
	fmt.Fprintf(&b, fleetFormat, "balancer", "clients", "requests", "lost", "requests", "lost", "requests", "lost")
	for _, r := range rows {
		if r.Skipped != "" {
			fmt.Fprintf(&b, "%-9s skipped: %s\n", r.Balancer, r.Skipped)
			continue
		}
		fmt.Fprintf(&b, fleetFormat, r.Balancer, r.Clients, thousands(r.Restarted.Requests), r.Restarted.Lost,
			thousands(r.Replaced.Requests), r.Replaced.Lost, thousands(r.Control.Requests), r.Control.Lost)
		for _, seen := range []*row{r.Restarted, r.Replaced, r.Control} {
			b.WriteString(seen.losses())
		}
	}
	return b.String()
}

// judgeFleet wants nothing lost with a lame duck, and something without: who loses nothing then was not looked at.
func judgeFleet(rows []fleetRow) error {
	var failed []string
	control := make(map[string]int)
	for _, r := range rows {
		if r.Skipped != "" {
			continue
		}
		if r.Restarted.Lost+r.Replaced.Lost > 0 {
			failed = append(failed, fmt.Sprintf("%s %s lost %d", r.Balancer, r.Clients, r.Restarted.Lost+r.Replaced.Lost))
		}
		control[r.Balancer] += r.Control.Lost
	}
	for name, lost := range control {
		if lost == 0 && name != "nginx" { // which may notice by itself, and take another
			failed = append(failed, name+" lost nothing without a lame duck either")
		}
	}
	if failed != nil {
		return errors.New(strings.Join(failed, "; "))
	}
	return nil
}
