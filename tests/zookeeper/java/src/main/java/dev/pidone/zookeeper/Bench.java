package dev.pidone.zookeeper;

import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.lang.management.ManagementFactory;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.List;
import java.util.Locale;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.atomic.AtomicLong;
import java.util.concurrent.atomic.AtomicReference;

import org.apache.zookeeper.Watcher.Event.KeeperState;
import org.apache.zookeeper.ZooKeeper;

/** Heartbeats by ZooKeeper's own client: the servers, USER:PASSWORD, the timeout in ms, and nodes; a session for each. */
public final class Bench {
    private static final int IN_FLIGHT = 10;

    /** One heartbeat for the instance of that number. It throws if the registry does not renew. */
    private interface Beat {
        void send(int number) throws Exception;
    }

    public static void main(String[] arguments) throws Exception {
        List<ZooKeeper> sessions = new ArrayList<>();
        for (int number = 3; number < arguments.length; number++) {
            CountDownLatch connected = new CountDownLatch(1);
            ZooKeeper session = new ZooKeeper(arguments[0], Integer.parseInt(arguments[2]), event -> {
                if (event.getState() == KeeperState.SyncConnected) {
                    connected.countDown();
                }
            });
            connected.await();
            session.addAuthInfo("digest", arguments[1].getBytes(StandardCharsets.UTF_8));
            sessions.add(session);
        }
        serve(sessions.size(), number -> {
            if (sessions.get(number).exists(arguments[3 + number], false) == null) {
                throw new IllegalStateException("there is no node " + arguments[3 + number]);
            }
        });
    }

    /** Answers each line of the input, which is a number of seconds, with the heartbeats sent in them and their cost. */
    private static void serve(int instances, Beat beat) throws Exception {
        com.sun.management.OperatingSystemMXBean system =
            (com.sun.management.OperatingSystemMXBean) ManagementFactory.getOperatingSystemMXBean();
        BufferedReader input = new BufferedReader(new InputStreamReader(System.in));
        for (String line = input.readLine(); line != null; line = input.readLine()) {
            long began = System.nanoTime();
            long until = began + (long) (Double.parseDouble(line) * 1e9);
            long before = system.getProcessCpuTime();
            AtomicLong beats = new AtomicLong();
            AtomicReference<Exception> failure = new AtomicReference<>();
            List<Thread> threads = new ArrayList<>();
            for (int thread = 0; thread < IN_FLIGHT; thread++) {
                int first = thread;
                threads.add(new Thread(() -> {
                    try {
                        for (int number = first; System.nanoTime() < until; number += IN_FLIGHT) {
                            beat.send(number % instances);
                            beats.incrementAndGet();
                        }
                    } catch (Exception error) {
                        failure.set(error);
                    }
                }));
            }
            for (Thread thread : threads) {
                thread.start();
            }
            for (Thread thread : threads) {
                thread.join();
            }
            if (failure.get() != null) {
                throw failure.get();
            }
            System.out.printf(Locale.ROOT, "= {\"beats\": %d, \"cpu\": %.6f, \"wall\": %.6f}%n", beats.get(),
                (system.getProcessCpuTime() - before) / 1e9, (System.nanoTime() - began) / 1e9);
        }
        Runtime.getRuntime().halt(0);
    }
}
