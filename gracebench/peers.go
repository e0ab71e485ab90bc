package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"
)

// A peer is another way to restart a server.
type peer struct {
	name   string
	about  string
	folder string // of its program, in gracebench/peers; "" for this library, and for a proxy's own reload
	signal string // that makes it restart
	reload func(ctx context.Context, t *target, reload bool) (string, error)
}

var allPeers = []peer{
	{name: "grace", about: "this library"},
	{name: "net/http", about: "Shutdown, then start anew", folder: "nethttp", signal: "USR2"},
	{name: "tableflip", about: "cloudflare/tableflip and Shutdown", folder: "tableflip", signal: "HUP"},
	{name: "endless", about: "fvbock/endless", folder: "endless", signal: "HUP"},
	{name: "facebookgo/grace", about: "the original of 2018", folder: "facebookgo", signal: "USR2"},
	{name: "nginx", about: "nginx's own reload", reload: startNginx},
	{name: "haproxy", about: "haproxy's own reload", reload: startHAProxy},
}

// A peerRow is what restarts cost the clients of one peer.
type peerRow struct {
	Name, About string
	Skipped     string `json:",omitempty"`
	KeepAlive   *row   `json:",omitempty"`
	New         *row   `json:",omitempty"` // a connection for each request
}

const peerFormat = "%-17s %-34s %8v %11v %10v %13v\n"

// benchPeers holds this library against its peers. Only what the library itself loses is a failure.
func benchPeers(ctx context.Context, cfg config) error {
	if cfg.budget > 0 {
		cfg.budget = 6 * time.Second
	}
	if !cfg.json {
		fmt.Printf("What one restart costs %d clients that never retry; %s/%s, %d processors\n\n",
			cfg.clients, runtime.GOOS, runtime.GOARCH, runtime.NumCPU())
		fmt.Printf(peerFormat, "", "", "", "clients keep connections", "", "one a request")
		fmt.Printf(peerFormat, "server", "", "restarts", "lost", "new conns", "lost")
	}
	line := newProgress(cfg)
	defer line.close()
	kinds, err := chooseKinds("http1,http1-new", true)
	if err != nil {
		return err
	}
	var rows []peerRow
	var failed []string
	for i, p := range allPeers {
		row, err := p.run(ctx, cfg, kinds, func(what string, t *target) {
			line.follow(p.name+", "+what, time.Duration(len(allPeers)-i)*2*kinds[0].takes(cfg), t.soFar)
		})
		line.pause()
		if err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
		rows = append(rows, row)
		if !cfg.json {
			if _, err := fmt.Print(row.text()); err != nil {
				return err
			}
		}
		if p.name == "grace" {
			failed = append(row.KeepAlive.Failures, row.New.Failures...)
		}
	}
	if cfg.json {
		if err := writeJSON(rows); err != nil {
			return err
		}
	}
	if len(failed) > 0 {
		return errors.New(strings.Join(failed, "; "))
	}
	return nil
}

func (p peer) run(ctx context.Context, cfg config, kinds []kind, begun func(string, *target)) (peerRow, error) {
	r := peerRow{Name: p.name, About: p.about}
	if p.folder != "" {
		program, err := buildPeer(ctx, p.folder)
		if err != nil {
			r.Skipped = err.Error()
			return r, nil
		}
		defer os.Remove(program)
		cfg.peer = program + " {addr}"
		if cfg.signal, err = signalByName(p.signal); err != nil {
			return r, err
		}
	}
	for i, into := range []**row{&r.KeepAlive, &r.New} {
		k := kinds[i]
		k.proxy, k.reload = p.reload, p.reload != nil
		one, err := runKind(ctx, cfg, k, func(t *target) { begun(k.name, t) })
		if err != nil {
			return r, err
		}
		if one.Skipped != "" {
			r.Skipped = one.Skipped
			return r, nil
		}
		*into = one
	}
	return r, nil
}

// buildPeer builds a peer's program, whose modules Go fetches where they can be had.
func buildPeer(ctx context.Context, folder string) (program string, err error) {
	dir := filepath.Join("gracebench", "peers")
	if _, err := os.Stat(dir); err != nil {
		dir = "peers" // run from gracebench itself
	}
	f, err := os.CreateTemp("", "gracebench-"+folder)
	if err != nil {
		return "", err
	}
	f.Close()
	build := exec.CommandContext(ctx, "go", "build", "-o", f.Name(), "./"+folder)
	build.Dir = dir
	if out, err := build.CombinedOutput(); err != nil {
		os.Remove(f.Name())
		lines := strings.Split(strings.TrimSpace(string(out)), "\n")
		return "", fmt.Errorf("cannot be built: %s", cmp.Or(lines[len(lines)-1], err.Error()))
	}
	return f.Name(), nil
}

func (r peerRow) text() string {
	if r.Skipped != "" {
		return fmt.Sprintf("%-17s %-34s skipped: %s\n", r.Name, r.About, r.Skipped)
	}
	each := func(n int, of *row) string { return fmt.Sprintf("%.1f", float64(n)/float64(max(of.Restarts, 1))) }
	return fmt.Sprintf(peerFormat, r.Name, r.About, r.KeepAlive.Restarts, each(r.KeepAlive.Lost, r.KeepAlive),
		each(r.KeepAlive.NewConns, r.KeepAlive), each(r.New.Lost, r.New))
}
