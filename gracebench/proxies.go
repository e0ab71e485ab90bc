package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// startNginx starts nginx in front of the server. It may not try a request twice, and keeps its connections for as long
// as the server does. One that is to reload has a master process, and its workers answer with their own pids.
func startNginx(ctx context.Context, t *target, reload bool) (string, error) {
	master, pid, signal := "off", "", ""
	if reload {
		master, pid, signal = "on", "proxy_hide_header Pid; add_header Pid $pid;", "HUP"
	}
	conf := nginxConf(master, `
	upstream tested {
		server {server} max_fails=0;
		keepalive 1000;
		keepalive_requests 100000000;
		keepalive_timeout 10m;
	}
	server {
		listen {addr};
		location / {
			proxy_pass http://tested;
			proxy_http_version 1.1;
			proxy_set_header Connection "";
			proxy_next_upstream off;
			`+pid+`
		}
	}
`)
	return startProxy(ctx, t, conf, signal, "nginx", "-p", t.config.dir, "-e", "stderr", "-c")
}

// nginxConf is a configuration with these upstreams and servers.
func nginxConf(master, http string) string {
	return `
daemon off;
master_process ` + master + `;
pid {dir}/nginx.pid;
error_log {dir}/nginx.log;
events { worker_connections 1024; }
http {
	access_log off;
	client_body_temp_path {dir}/body;
	proxy_temp_path {dir}/proxy;
	fastcgi_temp_path {dir}/fastcgi;
	uwsgi_temp_path {dir}/uwsgi;
	scgi_temp_path {dir}/scgi;
	keepalive_requests 100000000;
	keepalive_timeout 10m;
` + http + `
}
`
}

// startHAProxy starts haproxy in front of the server, like startNginx.
func startHAProxy(ctx context.Context, t *target, reload bool) (string, error) {
	master, pid, signal := "-db", "", ""
	if reload {
		master, pid, signal = "-W", "http-response set-header Pid %pid", "USR2"
	}
	conf := `
global
	maxconn 2000
	nbthread 1
defaults
	mode http
	timeout connect 10s
	timeout client 10m
	timeout server 10m
	timeout http-keep-alive 10m
	retries 0
	http-reuse always
frontend clients
	bind {addr}
	` + pid + `
	default_backend tested
backend tested
	server tested {server} pool-purge-delay 10m
`
	return startProxy(ctx, t, conf, signal, "haproxy", master, "-f")
}

// startProxy starts the program in front of the server, with the name of its configuration as the last argument. It
// returns the address of the proxy when it accepts connections. The signal, if there is one, makes it reload.
func startProxy(ctx context.Context, t *target, conf, signal, name string, args ...string) (addr string, err error) {
	if addr, err = freeAddr(); err != nil {
		return "", err
	}
	conf = strings.NewReplacer("{dir}", t.config.dir, "{server}", t.addr, "{addr}", addr).Replace(conf)
	if t.proxy, err = runProxy(ctx, t.config.dir, t.log, conf, addr, name, args...); err != nil {
		return "", t.withLog(err)
	}
	if signal != "" {
		t.proxy.reload, err = signalByName(signal)
	}
	return addr, err
}

// runProxy writes the configuration into dir, starts the program, and returns when it accepts connections at addr.
func runProxy(ctx context.Context, dir string, log *os.File, conf, addr, name string, args ...string) (*proxy, error) {
	path, err := lookProxy(name)
	if err != nil {
		return nil, err
	}
	file := filepath.Join(dir, name+".conf")
	if err := os.WriteFile(file, []byte(conf), 0o600); err != nil {
		return nil, err
	}
	cmd := exec.Command(path, append(args, file)...)
	cmd.Stdout, cmd.Stderr = log, log
	endWithBench(cmd)
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	p := &proxy{process: cmd.Process, ended: make(chan struct{})}
	go func() {
		cmd.Wait()
		close(p.ended)
	}()
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	go func() {
		select {
		case <-p.ended: // at its start: nobody need wait any longer
			cancel()
		case <-ctx.Done():
		}
	}()
	if err := waitDial(ctx, "tcp", addr); err != nil {
		p.stop()
		return nil, fmt.Errorf("starting %s: %w", path, err)
	}
	return p, nil
}

// lookProxy also looks where servers are installed, which is not in everybody's PATH.
func lookProxy(name string) (string, error) {
	for _, dir := range []string{"", "/usr/sbin", "/usr/local/sbin"} {
		if path, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("%s is %w", name, errMissing)
}

// A proxy is a running nginx or haproxy: a single process, or the master of others.
type proxy struct {
	process *os.Process
	reload  os.Signal // nil if it is not to restart itself
	ended   chan struct{}
}

func (p *proxy) reloads() bool { return p != nil && p.reload != nil }

func (p *proxy) stop() {
	if p == nil {
		return
	}
	p.process.Signal(syscall.SIGTERM)
	select {
	case <-p.ended:
	case <-time.After(stopTimeout):
		p.process.Kill()
		<-p.ended
	}
}
