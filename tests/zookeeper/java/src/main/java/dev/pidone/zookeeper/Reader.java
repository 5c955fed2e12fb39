package dev.pidone.zookeeper;

import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.Collection;
import java.util.HashMap;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;

import com.fasterxml.jackson.databind.ObjectMapper;
import org.apache.curator.framework.CuratorFramework;
import org.apache.curator.framework.CuratorFrameworkFactory;
import org.apache.curator.retry.RetryNTimes;
import org.apache.curator.x.discovery.ServiceDiscovery;
import org.apache.curator.x.discovery.ServiceDiscoveryBuilder;
import org.apache.curator.x.discovery.ServiceInstance;
import org.apache.curator.x.discovery.ServiceProvider;
import org.apache.curator.x.discovery.details.JsonInstanceSerializer;
import org.apache.zookeeper.KeeperException;
import org.apache.zookeeper.ZooDefs;
import org.apache.zookeeper.data.ACL;
import org.apache.zookeeper.data.Id;
import org.apache.zookeeper.data.Stat;
import org.springframework.cloud.zookeeper.discovery.ZookeeperInstance;
import org.springframework.cloud.zookeeper.discovery.ZookeeperServiceInstance;
import org.springframework.cloud.zookeeper.support.StatusConstants;

/**
 * Curator's x-discovery, and ZooKeeper's own client, at the servers that are the argument. Each line of the input is
 * answered with a line of JSON; an exception is answered as {"error": its class and message}. It ends with its input.
 *
 * spring BASE SERVICE       the instances as a client of Spring Cloud has them, by their ids
 * curator BASE SERVICE      the same for Curator alone, with any payload
 * provider BASE SERVICE     the ids that Curator's ServiceProvider offers to its callers
 * tree PATH                 the node and all below it: data, owner, ACL, and the transaction that created it
 * set PATH DATA             writes data, as an operator does
 * create PATH DATA          creates a persistent node
 * acl PATH BITS SCHEME ID   replaces the ACL by one entry, beside which everybody may read
 * delete PATH               deletes a node and all below it
 * register BASE SERVICE ID ADDRESS PORT      Curator registers an instance itself, until the end
 */
public final class Reader {
    private final CuratorFramework client;
    private final Map<String, ServiceProvider<Object>> providers = new HashMap<>();

    private Reader(CuratorFramework client) {
        this.client = client;
    }

    public static void main(String[] arguments) throws Exception {
        CuratorFramework client = CuratorFrameworkFactory.newClient(arguments[0], 10_000, 5_000, new RetryNTimes(20, 250));
        if (arguments.length > 1) {
            client = CuratorFrameworkFactory.builder().connectString(arguments[0]).sessionTimeoutMs(10_000)
                .connectionTimeoutMs(5_000).retryPolicy(new RetryNTimes(20, 250))
                .authorization("digest", arguments[1].getBytes(StandardCharsets.UTF_8)).build();
        }
        client.start();
        Reader reader = new Reader(client);
        ObjectMapper json = new ObjectMapper();
        BufferedReader input = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        for (String line = input.readLine(); line != null; line = input.readLine()) {
            Object answer;
            try {
                answer = reader.answer(line.split(" ", 6));
            } catch (Exception error) {
                answer = Map.of("error", error.toString());
            }
            System.out.println(json.writeValueAsString(answer));
        }
        Runtime.getRuntime().halt(0);
    }

    private Object answer(String[] words) throws Exception {
        switch (words[0]) {
            case "spring":
                return spring(words[1], words[2]);
            case "curator":
                return curator(words[1], words[2]);
            case "provider":
                return provider(words[1], words[2]);
            case "tree":
                Map<String, Object> nodes = new TreeMap<>();
                walk(words[1], nodes);
                return nodes;
            case "set":
                return client.setData().forPath(words[1], rest(words, 2)).getVersion();
            case "create":
                return client.create().creatingParentsIfNeeded().forPath(words[1], rest(words, 2));
            case "acl":
                client.setACL().withACL(List.of(
                    new ACL(ZooDefs.Perms.READ, ZooDefs.Ids.ANYONE_ID_UNSAFE),
                    new ACL(Integer.parseInt(words[2]), new Id(words[3], words[4])))).forPath(words[1]);
                return "written";
            case "delete":
                client.delete().deletingChildrenIfNeeded().forPath(words[1]);
                return "deleted";
            case "register":
                ServiceInstance<Object> instance = ServiceInstance.<Object>builder().name(words[2]).id(words[3])
                    .address(words[4]).port(Integer.parseInt(words[5])).build();
                discovery(Object.class, words[1]).registerService(instance);
                return instance.getId();
            default:
                throw new IllegalArgumentException(words[0]);
        }
    }

    private static byte[] rest(String[] words, int from) {
        List<String> left = new ArrayList<>(List.of(words)).subList(Math.min(from, words.length), words.length);
        return String.join(" ", left).getBytes(StandardCharsets.UTF_8);
    }

    private <T> ServiceDiscovery<T> discovery(Class<T> payload, String base) throws Exception {
        ServiceDiscovery<T> discovery = ServiceDiscoveryBuilder.builder(payload).client(client).basePath(base)
            .serializer(new JsonInstanceSerializer<>(payload)).build();
        discovery.start();
        return discovery;
    }

    private Map<String, Object> spring(String base, String service) throws Exception {
        Map<String, Object> instances = new TreeMap<>();
        for (ServiceInstance<ZookeeperInstance> found : discovery(ZookeeperInstance.class, base).queryForInstances(service)) {
            ZookeeperServiceInstance instance = new ZookeeperServiceInstance(service, found);
            Map<String, Object> values = new LinkedHashMap<>();
            values.put("host", instance.getHost());
            values.put("port", instance.getPort());
            values.put("secure", instance.isSecure());
            values.put("uri", instance.getUri().toString());
            values.put("uriHost", instance.getUri().getHost());
            values.put("metadata", instance.getMetadata());
            values.put("status", instance.getMetadata().get(StatusConstants.INSTANCE_STATUS_KEY));
            values.put("type", found.getServiceType().name());
            instances.put(found.getId(), values);
        }
        return instances;
    }

    private Map<String, Object> curator(String base, String service) throws Exception {
        Map<String, Object> instances = new TreeMap<>();
        for (ServiceInstance<Object> found : discovery(Object.class, base).queryForInstances(service)) {
            Map<String, Object> values = new LinkedHashMap<>();
            values.put("name", found.getName());
            values.put("address", found.getAddress());
            values.put("port", found.getPort());
            values.put("sslPort", found.getSslPort());
            values.put("uri", found.buildUriSpec());
            values.put("enabled", found.isEnabled());
            values.put("payload", found.getPayload());
            instances.put(found.getId(), values);
        }
        return instances;
    }

    private Collection<String> provider(String base, String service) throws Exception {
        ServiceProvider<Object> provider = providers.get(base + service);
        if (provider == null) {
            provider = discovery(Object.class, base).serviceProviderBuilder().serviceName(service).build();
            provider.start();
            providers.put(base + service, provider);
        }
        List<String> ids = new ArrayList<>();
        for (ServiceInstance<Object> found : provider.getAllInstances()) {
            ids.add(found.getId());
        }
        return ids;
    }

    private void walk(String path, Map<String, Object> nodes) throws Exception {
        Stat stat = new Stat();
        List<String> children;
        Map<String, Object> values = new LinkedHashMap<>();
        try {
            byte[] data = client.getData().storingStatIn(stat).forPath(path);
            values.put("data", data == null ? "" : new String(data, StandardCharsets.UTF_8));
            children = client.getChildren().forPath(path);
            List<String> acl = new ArrayList<>();
            for (ACL entry : client.getACL().forPath(path)) {
                acl.add(entry.getPerms() + " " + entry.getId().getScheme() + " " + entry.getId().getId());
            }
            values.put("acl", acl);
        } catch (KeeperException.NoNodeException gone) {
            return;
        }
        values.put("owner", stat.getEphemeralOwner());
        values.put("created", stat.getCzxid());
        nodes.put(path, values);
        for (String child : children) {
            walk(path.equals("/") ? "/" + child : path + "/" + child, nodes);
        }
    }
}
