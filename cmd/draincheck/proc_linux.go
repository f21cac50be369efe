package main

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// canWatch says that a process's listening sockets can be seen from outside.
const canWatch = true

// A watch is a listening socket of another process: its descriptor there, and
// what that leads to. It is found without a connection, which would be one more
// in the server's accept queue.
type watch struct{ link, inode string }

// watchListener finds the socket that pid, or a process that descends from it,
// listens with on port.
func watchListener(pid, port int) (watch, bool) {
	inodes := listening(port)
	if len(inodes) == 0 {
		return watch{}, false
	}
	for _, pid := range family(pid) {
		links, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
		for _, link := range links {
			if to, err := os.Readlink(link); err == nil && inodes[to] {
				return watch{link, to}, true
			}
		}
	}
	return watch{}, false
}

// gone blocks until the socket has been closed, or done, and returns when that
// was. The zero watch knows no better than that the exit closes all.
func (w watch) gone(done <-chan struct{}) time.Time {
	if w == (watch{}) {
		<-done
		return time.Now()
	}
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		if to, err := os.Readlink(w.link); err != nil || to != w.inode {
			return time.Now()
		}
		select {
		case <-tick.C:
		case <-done:
			return time.Now()
		}
	}
}

// listening returns the sockets that listen on port, as /proc/*/fd shows them.
func listening(port int) map[string]bool {
	const listen = "0A" // TCP_LISTEN
	found := map[string]bool{}
	for _, name := range []string{"/proc/net/tcp", "/proc/net/tcp6"} {
		f, err := os.Open(name)
		if err != nil {
			continue
		}
		for sc := bufio.NewScanner(f); sc.Scan(); {
			col := strings.Fields(sc.Text())
			if len(col) < 10 || col[3] != listen {
				continue
			}
			_, p, _ := strings.Cut(col[1], ":")
			if n, err := strconv.ParseUint(p, 16, 16); err == nil && int(n) == port {
				found["socket:["+col[9]+"]"] = true
			}
		}
		f.Close()
	}
	return found
}

// marked returns the processes whose environment has that entry, but for this
// one: a process inherits it, wherever it goes.
func marked(entry string) (pids []int) {
	files, _ := filepath.Glob("/proc/[0-9]*/environ")
	for _, name := range files {
		b, err := os.ReadFile(name)
		if err != nil || !bytes.Contains(append(b, 0), append([]byte(entry), 0)) {
			continue
		}
		if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(name))); err == nil && pid != os.Getpid() {
			pids = append(pids, pid)
		}
	}
	return pids
}

// processName returns the name of the process's program.
func processName(pid int) string {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	return strings.TrimSpace(string(b))
}

// family returns pid and the processes that descend from it: go run, or a
// shell, are not the server themselves.
func family(pid int) []int {
	all := []int{pid}
	for i := 0; i < len(all); i++ {
		tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", all[i]))
		for _, t := range tasks {
			b, _ := os.ReadFile(t)
			for _, f := range strings.Fields(string(b)) {
				if n, err := strconv.Atoi(f); err == nil {
					all = append(all, n)
				}
			}
		}
	}
	return all
}
