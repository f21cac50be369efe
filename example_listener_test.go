package graceful_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"strings"
	"time"

	"github.com/seed-121bbccf/graceful"
)

// A bare accept loop for a protocol of lines. With a Listener in it, a command
// in progress is finished when the server is stopped; the loop itself stays as
// it was.
func ExampleNewListener() {
	serve := func(l net.Listener) error {
		for {
			c, err := l.Accept()
			if err != nil {
				return err
			}
			go func() {
				defer c.Close()
				lines := bufio.NewScanner(c)
				for lines.Scan() {
					time.Sleep(50 * time.Millisecond) // the work
					fmt.Fprintln(c, strings.ToUpper(lines.Text()))
				}
			}()
		}
	}

	below, err := graceful.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		fmt.Println(err)
		return
	}
	l := graceful.NewListener(below)
	l.Timeout = 10 * time.Second
	go serve(l)

	client, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		fmt.Println(err)
		return
	}
	defer client.Close()
	fmt.Fprintln(client, "hello")
	for l.Stats().Active == 0 {
		time.Sleep(time.Millisecond)
	}

	if err := l.Shutdown(context.Background()); err != nil {
		fmt.Println(err)
	}
	answers, err := io.ReadAll(client) // to the end of the connection
	fmt.Printf("%s%v\n", answers, err)
	r := l.Report()
	fmt.Println(r.Idle, "was idle and closed,", len(r.Killed), "killed")
	// Output:
	// HELLO
	// <nil>
	// 1 was idle and closed, 0 killed
}

// A server that answers "accepted" at once, and lets a worker do the work: the
// connection looks idle from then on, and is not.
func ExampleBusy() {
	below, err := graceful.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		fmt.Println(err)
		return
	}
	l := graceful.NewListener(below)
	l.IdleGrace = 20 * time.Millisecond
	accepted := make(chan struct{})
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		lines := bufio.NewScanner(c)
		for lines.Scan() {
			done := graceful.Busy(c)
			go func() {
				defer done()
				time.Sleep(100 * time.Millisecond) // the work
				fmt.Fprintln(c, "done")
			}()
			fmt.Fprintln(c, "accepted")
			close(accepted)
		}
	}()

	client, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		fmt.Println(err)
		return
	}
	defer client.Close()
	fmt.Fprintln(client, "work")
	<-accepted
	if err := l.Shutdown(context.Background()); err != nil {
		fmt.Println(err)
	}
	answers, err := io.ReadAll(client)
	fmt.Printf("%s%v\n", answers, err)
	// Output:
	// accepted
	// done
	// <nil>
}
